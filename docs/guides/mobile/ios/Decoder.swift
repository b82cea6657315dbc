import Foundation
import OnnxRuntimeBindings

/// An exported graph (`model.ort` or `model.onnx`) in ONNX Runtime. The keys and values of each layer, which come out of
/// one run, go into the next as they are.
public final class Decoder {
    public let context: Int
    private let environment: ORTEnv
    private let session: ORTSession
    private let pastNames: [String]
    private let cacheShape: [NSNumber]
    private var past: [String: ORTValue] = [:]
    private var length = 0

    /// - Parameter config: the table "model" of genai_config.json.
    public init(path: String, config: ModelConfig, threads: Int32 = 4) throws {
        context = config.contextLength
        environment = try ORTEnv(loggingLevel: .warning)
        let options = try ORTSessionOptions()
        try options.setIntraOpNumThreads(threads)
        session = try ORTSession(env: environment, modelPath: path, sessionOptions: options)
        pastNames = try session.inputNames().filter { $0.hasPrefix("past_key_values.") }
        cacheShape = [1, config.decoder.numKeyValueHeads, 0, config.decoder.headSize].map { NSNumber(value: $0) }
    }

    /// Append tokens to the cache; the logits after the last of them.
    public func append(_ ids: [Int]) throws -> [Float] {
        let total = length + ids.count
        var inputs = [
            "input_ids": try longs(ids.map(Int64.init)),
            "attention_mask": try longs(Array(repeating: 1, count: total)),
        ]
        for name in pastNames {
            inputs[name] = try past[name] ?? ORTValue(tensorData: NSMutableData(), elementType: .float, shape: cacheShape)
        }
        let names = Set(pastNames.map(present) + ["logits"])
        let outputs = try session.run(withInputs: inputs, outputNames: names, runOptions: nil)
        for name in pastNames { past[name] = outputs[present(name)] }
        length = total
        let data = try outputs["logits"]!.tensorData() as Data
        return data.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
    }

    /// Forget everything.
    public func clear() {
        past = [:]
        length = 0
    }

    private func longs(_ values: [Int64]) throws -> ORTValue {
        let data = values.withUnsafeBytes { NSMutableData(bytes: $0.baseAddress!, length: $0.count) }
        return try ORTValue(tensorData: data, elementType: .int64, shape: [1, NSNumber(value: values.count)])
    }

    private func present(_ past: String) -> String {
        past.replacingOccurrences(of: "past_key_values", with: "present")
    }
}

/// What genai_config.json tells of the model.
public struct ModelConfig: Decodable {
    public struct Decoder: Decodable {
        public let headSize: Int
        public let numKeyValueHeads: Int
    }

    public let contextLength: Int
    public let eosTokenId: [Int]
    public let decoder: Decoder

    public static func read(_ file: URL) throws -> ModelConfig {
        struct Document: Decodable { let model: ModelConfig }
        let json = JSONDecoder()
        json.keyDecodingStrategy = .convertFromSnakeCase
        return try json.decode(Document.self, from: Data(contentsOf: file)).model
    }
}
