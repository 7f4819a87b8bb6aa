import Foundation

/// The files of the export, as far as they are read here.
struct TokenizerFile: Decodable {
    struct Model: Decodable {
        let vocab: [String: Int]
        let unk_token: String
        let continuing_subword_prefix: String
        let max_input_chars_per_word: Int
    }

    struct Added: Decodable {
        let id: Int
        let content: String
    }

    let model: Model
    let added_tokens: [Added]
    let normalizer: Rules
}

struct Reader: Decodable {
    struct Example: Decodable {
        let text: String
        let longest: Int
        let ids: [Int]
    }

    let before: [Int]
    let after: [Int]
    let examples: [Example]
}

struct Manifest: Decodable {
    struct Task: Decodable {
        let tag: String
        let labels: [Name]?
        let multi_label: Bool?
    }

    struct Artifact: Decodable {
        let inputs: [String]
        let longest: Int
    }

    let task: Task
    let artifact: Artifact
}

struct Certificate: Decodable {
    struct Tolerance: Decodable {
        let outputs: Double
    }

    let model_bytes: Int
    let tolerance: Tolerance
}

struct Golden: Decodable {
    struct Example: Decodable {
        let ids: [[Int]]
        let outputs: Numbers
    }

    let examples: [Example]
}

/// A label: a string or a number.
struct Name: Decodable {
    let text: String

    init(from decoder: Decoder) throws {
        let value = try decoder.singleValueContainer()
        text = try (try? value.decode(String.self)) ?? String(value.decode(Int.self))
    }
}

/// All numbers of nested lists.
struct Numbers: Decodable {
    let values: [Double]

    init(from decoder: Decoder) throws {
        if let one = try? decoder.singleValueContainer().decode(Double.self) {
            values = [one]
        } else {
            values = try decoder.singleValueContainer().decode([Numbers].self).flatMap(\.values)
        }
    }
}
