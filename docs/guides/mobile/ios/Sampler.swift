import Foundation

/// Sampling parameters; a temperature of 0 is greedy.
public struct Sampling {
    public var temperature = 0.7
    public var topK = 50
    public var topP = 0.9
    public var repetitionPenalty = 1.05

    public init() {}
}

/// The next token: repetition penalty, temperature, top-k, top-p, then a draw.
///
/// - Parameters:
///   - logits: one number for each token of the vocabulary.
///   - seen: tokens that the repetition penalty applies to.
///   - random: a number in 0..<1.
public func sample(_ logits: [Float], seen: [Int], sampling: Sampling, random: Double) -> Int {
    var scores = logits.map(Double.init)
    for id in Set(seen) {
        let score = scores[id]
        scores[id] = score > 0 ? score / sampling.repetitionPenalty : score * sampling.repetitionPenalty
    }
    var ids = scores.indices.sorted { scores[$0] != scores[$1] ? scores[$0] > scores[$1] : $0 < $1 }
    if sampling.temperature == 0 { return ids[0] }
    if sampling.topK > 0 && sampling.topK < ids.count {
        let least = scores[ids[sampling.topK - 1]]
        ids = ids.filter { scores[$0] >= least }
    }
    let highest = scores[ids[0]]
    let weights = ids.map { exp((scores[$0] - highest) / sampling.temperature) }
    var kept = ids.count
    if sampling.topP < 1 {
        let share = sampling.topP * weights.reduce(0, +)
        var sum = 0.0
        for (at, weight) in weights.enumerated() {
            sum += weight
            if sum >= share {
                kept = at + 1
                break
            }
        }
        while kept < ids.count && weights[kept] == weights[kept - 1] { kept += 1 }  // ties of the last
    }
    // The running sum goes by id, as in mmcli, so the same random number means the same token.
    let drawn = (0..<kept).sorted { ids[$0] < ids[$1] }
    var left = random * drawn.reduce(0) { $0 + weights[$1] }
    for at in drawn {
        left -= weights[at]
        if left < 0 { return ids[at] }
    }
    return ids[drawn[drawn.count - 1]]
}
