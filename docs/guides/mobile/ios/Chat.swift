import Foundation
import Tokenizers

/// A conversation with a model that was trained with mmcli's chat template (ChatML). For another model, look into
/// `chat_template` of tokenizer_config.json.
public final class Chat {
    private let decoder: Decoder
    private let tokenizer: Tokenizer
    private let stop: Set<Int>
    private let sampling: Sampling
    private var cached: [Int] = []  // what the model has read and written

    /// - Parameter folder: an export with model.ort, genai_config.json and the tokenizer's files.
    public init(folder: URL, sampling: Sampling = Sampling()) async throws {
        let config = try ModelConfig.read(folder.appendingPathComponent("genai_config.json"))
        decoder = try Decoder(path: folder.appendingPathComponent("model.ort").path, config: config)
        tokenizer = try await AutoTokenizer.from(modelFolder: folder)
        stop = Set(config.eosTokenId)
        self.sampling = sampling
    }

    /// Write a reply; `say` gets the whole text so far after each token.
    public func reply(_ message: String, maxTokens: Int = 256, say: (String) -> Void = { _ in }) throws -> String {
        let text = message.replacingOccurrences(of: Self.control, with: "", options: .regularExpression)
        let turn = encode("<|im_start|>user\n\(text)<|im_end|>\n<|im_start|>assistant\n")
        var prompt = cached.isEmpty ? turn : encode("<|im_end|>\n") + turn
        if cached.count + prompt.count + min(maxTokens, decoder.context / 4) > decoder.context {
            decoder.clear()
            cached = []
            prompt = turn
        }
        precondition(prompt.count < decoder.context, "the message is longer than the context")
        var logits: [Float] = []
        for start in stride(from: 0, to: prompt.count, by: Self.chunk) {
            logits = try decoder.append(Array(prompt[start..<min(start + Self.chunk, prompt.count)]))
        }
        cached += prompt
        var reply: [Int] = []
        while reply.count < maxTokens && cached.count < decoder.context {
            let seen = cached.filter { !stop.contains($0) }
            let id = sample(logits, seen: seen, sampling: sampling, random: Double.random(in: 0..<1))
            if stop.contains(id) { break }
            reply.append(id)
            say(tokenizer.decode(tokens: reply))
            logits = try decoder.append([id])
            cached.append(id)
        }
        return tokenizer.decode(tokens: reply)
    }

    private func encode(_ text: String) -> [Int] {
        tokenizer.encode(text: text, addSpecialTokens: false)
    }

    private static let chunk = 256  // tokens of a prompt that run at once: bounds the memory of their activations
    private static let control = #"<\|(im_start|im_end|endoftext)\|>|</?(think|tool_call|tool_response)>"#  // never typed
}
