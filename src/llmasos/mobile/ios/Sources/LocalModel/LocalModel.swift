import Foundation

/// A loaded model: inputs of one row in, its numbers out.
protocol Program {
    func run(_ inputs: [[Int]]) throws -> [Float]
}

/// A label and its probability.
public struct Label {
    public let name: String
    public let score: Double
}

/// An exported model on this device. It is loaded only where there is memory for it, and usable only where it makes the
/// same tokens and gives the same numbers as where it was exported.
public final class LocalModel: @unchecked Sendable {
    private let manifest: Manifest
    private let certificate: Certificate
    private let golden: Golden
    private let tokenizer: WordPiece
    private let program: any Program
    private let lock = NSLock()

    /// What the model is for: "text-classification", "sentence-similarity".
    public var tag: String { manifest.task.tag }

    /// Bytes that the model took where it was exported, beside its runtime.
    public var neededBytes: Int { certificate.model_bytes }

    /// - Parameters:
    ///   - read: returns a file of the export.
    ///   - freeBytes: memory that this app may still take.
    ///   - open: opens the program, after the memory was checked.
    init(read: (String) throws -> Data, freeBytes: Int, open: () throws -> any Program) throws {
        func json<T: Decodable>(_ name: String) throws -> T {
            do {
                return try JSONDecoder().decode(T.self, from: read(name))
            } catch let error as DecodingError {
                throw ModelError.bundle("\(name) is damaged: \(error)")
            }
        }
        manifest = try json("llmasos.json")
        certificate = try json("certificate.json")
        golden = try json("golden.json")
        let reader: Reader = try json("reader.json")
        tokenizer = try WordPiece(json("tokenizer.json"), reader)
        let needed = certificate.model_bytes
        if freeBytes < needed {
            throw ModelError.memory(
                "the model needs \(needed / 1_000_000) MB of memory, and \(freeBytes / 1_000_000) MB are free")
        }
        for example in reader.examples {
            let found = tokenizer.ids(example.text, longest: example.longest)
            if found != example.ids {
                throw ModelError.parity(
                    "the tokenizer makes other tokens of \"\(example.text.prefix(40))\" here: "
                        + "\(found.prefix(12)), not \(example.ids.prefix(12))")
            }
        }
        program = try open()
    }

    /// Label a text, the likeliest label first; of several labels at once, each with its own probability.
    public func classify(_ text: String) throws -> [Label] {
        try expect("text-classification")
        let logits = try run(tokenizer.ids(text, longest: manifest.artifact.longest)).map(Double.init)
        let scores = manifest.task.multi_label == true ? logits.map { 1 / (1 + exp(-$0)) } : softmax(logits)
        let names = manifest.task.labels ?? []
        return zip(names, scores).map { Label(name: $0.text, score: $1) }.sorted { $0.score > $1.score }
    }

    /// Return a text as a vector of length 1.
    public func embed(_ text: String) throws -> [Float] {
        try expect("sentence-similarity")
        let found = try run(tokenizer.ids(text, longest: manifest.artifact.longest))
        let length = max(found.reduce(0) { $0 + Double($1) * Double($1) }.squareRoot(), 1e-12)
        return found.map { Float(Double($0) / length) }
    }

    /// Return how alike two texts are, from -1 to 1.
    public func similarity(_ one: String, _ other: String) throws -> Double {
        try zip(embed(one), embed(other)).reduce(0) { $0 + Double($1.0) * Double($1.1) }
    }

    /// Run the golden rows; return the largest difference, as a share of the largest golden number.
    public func verify() throws -> Double {
        var (largest, worst, row) = (1e-30, 0.0, 0)
        for (number, example) in golden.examples.enumerated() {
            let wanted = example.outputs.values
            let found = try example.ids.flatMap(run)
            if found.count != wanted.count {
                throw ModelError.parity(
                    "golden row \(number + 1) gives \(found.count) numbers, and gave \(wanted.count)")
            }
            for (here, there) in zip(found, wanted) {
                largest = max(largest, abs(there))
                let apart = abs(Double(here) - there)
                if !(apart <= worst) { // also where it is no number
                    (worst, row) = (apart.isNaN ? .infinity : apart, number)
                }
            }
        }
        let allowed = certificate.tolerance.outputs
        if !(worst / largest <= allowed) {
            throw ModelError.parity(
                "golden row \(row + 1) differs by \(worst), \(worst / largest) of the largest; \(allowed) is allowed")
        }
        return worst / largest
    }

    private func run(_ ids: [Int]) throws -> [Float] {
        lock.lock()
        defer { lock.unlock() }
        return try program.run(
            manifest.artifact.inputs.map { $0 == "input_ids" ? ids : Array(repeating: 0, count: ids.count) })
    }

    private func expect(_ wanted: String) throws {
        if tag != wanted { throw ModelError.bundle("this is a model for \(tag), not for \(wanted)") }
    }
}

private func softmax(_ logits: [Double]) -> [Double] {
    let most = logits.max() ?? 0
    let powers = logits.map { exp($0 - most) }
    return powers.map { $0 / powers.reduce(0, +) }
}
