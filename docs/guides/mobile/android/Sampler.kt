package mmcli

import kotlin.math.exp

/** Sampling parameters; a temperature of 0 is greedy. */
data class Sampling(
    val temperature: Double = 0.7,
    val topK: Int = 50,
    val topP: Double = 0.9,
    val repetitionPenalty: Double = 1.05,
)

/**
 * The next token: repetition penalty, temperature, top-k, top-p, then a draw.
 *
 * @param logits one number for each token of the vocabulary.
 * @param seen tokens that the repetition penalty applies to.
 * @param random a number in [0, 1).
 */
fun sample(logits: FloatArray, seen: Collection<Int>, sampling: Sampling, random: Double): Int {
    val scores = DoubleArray(logits.size) { logits[it].toDouble() }
    for (id in seen.toSet()) {
        scores[id] = if (scores[id] > 0) scores[id] / sampling.repetitionPenalty else scores[id] * sampling.repetitionPenalty
    }
    if (sampling.temperature == 0.0) return scores.indices.maxBy { scores[it] }
    var ids = scores.indices.sortedByDescending { scores[it] }
    if (sampling.topK in 1 until ids.size) {
        val least = scores[ids[sampling.topK - 1]]
        ids = ids.filter { scores[it] >= least }
    }
    val highest = scores[ids.first()]
    val weights = ids.map { exp((scores[it] - highest) / sampling.temperature) }
    var kept = ids.size
    if (sampling.topP < 1) {
        val share = sampling.topP * weights.sum()
        var sum = 0.0
        kept = weights.indexOfFirst { sum += it; sum >= share } + 1
        if (kept == 0) kept = ids.size
        while (kept < ids.size && weights[kept] == weights[kept - 1]) kept++ // ties of the last
    }
    // The running sum goes by id, as in mmcli, so the same random number means the same token.
    val drawn = (0 until kept).sortedBy { ids[it] }
    var left = random * drawn.sumOf { weights[it] }
    for (at in drawn) {
        left -= weights[at]
        if (left < 0) return ids[at]
    }
    return ids[drawn.last()]
}
