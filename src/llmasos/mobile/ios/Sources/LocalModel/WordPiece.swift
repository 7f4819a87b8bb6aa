import Foundation

/// BERT's tokenizer, as `tokenizer.json` describes it, with what `reader.json` puts around a text.
struct WordPiece {
    private let words: [String: Int]
    private let special: [([Unicode.Scalar], Int)]
    private let before: [Int]
    private let after: [Int]
    private let unknown: Int
    private let goingOn: String
    private let mostCharacters: Int
    private let rules: Rules

    init(_ content: TokenizerFile, _ reader: Reader) throws {
        guard let unknown = content.model.vocab[content.model.unk_token] else {
            throw ModelError.bundle("tokenizer.json has no word for unknown ones")
        }
        words = content.model.vocab
        special = content.added_tokens.map { (Array($0.content.unicodeScalars), $0.id) }
            .sorted { $0.0.count > $1.0.count }
        before = reader.before
        after = reader.after
        self.unknown = unknown
        goingOn = content.model.continuing_subword_prefix
        mostCharacters = content.model.max_input_chars_per_word
        rules = content.normalizer
    }

    /// Return the ids of a text with what stands around it, cut to so many.
    func ids(_ text: String, longest: Int) -> [Int] {
        let room = max(0, longest - before.count - after.count)
        return before + inside(Array(text.unicodeScalars)).prefix(room) + after
    }

    private func inside(_ text: [Unicode.Scalar]) -> [Int] {
        var found: [Int] = []
        var (start, at) = (0, 0)
        while at < text.count { // special tokens that stand in the text are themselves
            guard let (token, id) = special.first(where: { text[at...].starts(with: $0.0) }) else {
                at += 1
                continue
            }
            found += pieces(Array(text[start..<at])) + [id]
            at += token.count
            start = at
        }
        return found + pieces(Array(text[start...]))
    }

    private func pieces(_ text: [Unicode.Scalar]) -> [Int] {
        split(rules.applied(to: text)).flatMap(cut)
    }

    /// Cut a word into the longest pieces that are known, from its beginning; or it is unknown.
    private func cut(_ word: [Unicode.Scalar]) -> [Int] {
        if word.count > mostCharacters { return [unknown] }
        var found: [Int] = []
        var start = 0
        while start < word.count {
            var end = word.count
            var id: Int?
            while end > start, id == nil {
                let piece = string(word[start..<end])
                id = words[start == 0 ? piece : goingOn + piece]
                if id == nil { end -= 1 }
            }
            guard let id else { return [unknown] }
            found.append(id)
            start = end
        }
        return found
    }

    private func split(_ text: [Unicode.Scalar]) -> [[Unicode.Scalar]] {
        var (found, word): ([[Unicode.Scalar]], [Unicode.Scalar]) = ([], [])
        func end() {
            if !word.isEmpty { found.append(word) }
            word = []
        }
        for one in text {
            if isSpace(one) {
                end()
            } else if isPunctuation(one) {
                end()
                found.append([one])
            } else {
                word.append(one)
            }
        }
        end()
        return found
    }
}

/// What is done to a text before it is cut.
struct Rules: Decodable {
    let clean_text: Bool
    let handle_chinese_chars: Bool
    let strip_accents: Bool?
    let lowercase: Bool

    func applied(to text: [Unicode.Scalar]) -> [Unicode.Scalar] {
        var out = text
        if clean_text { out = out.filter { !isDropped($0) }.map { isSpace($0) ? " " : $0 } }
        if handle_chinese_chars { out = out.flatMap { isHan($0) ? [" ", $0, " "] : [$0] } }
        if strip_accents ?? lowercase {
            out = string(out[...]).decomposedStringWithCanonicalMapping.unicodeScalars
                .filter { $0.properties.generalCategory != .nonspacingMark }
        }
        // one character at a time, so that no letter depends on its place in the word
        return lowercase ? out.flatMap { Array($0.properties.lowercaseMapping.unicodeScalars) } : out
    }
}

private func string(_ scalars: ArraySlice<Unicode.Scalar>) -> String {
    var out = String.UnicodeScalarView()
    out.append(contentsOf: scalars)
    return String(out)
}

private func isSpace(_ one: Unicode.Scalar) -> Bool { one.properties.isWhitespace }

private func isDropped(_ one: Unicode.Scalar) -> Bool {
    if one.value == 0xFFFD { return true }
    if [9, 10, 13].contains(one.value) { return false } // of the spaces among control characters, these
    return [.control, .format, .privateUse].contains(one.properties.generalCategory)
}

private func isPunctuation(_ one: Unicode.Scalar) -> Bool {
    switch one.value {
    case 33...47, 58...64, 91...96, 123...126: return true
    default: break
    }
    switch one.properties.generalCategory {
    case .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation, .initialPunctuation,
        .finalPunctuation, .otherPunctuation:
        return true
    default: return false
    }
}

/// What BERT cuts into single characters.
private func isHan(_ one: Unicode.Scalar) -> Bool {
    switch one.value {
    case 0x4E00...0x9FFF, 0x3400...0x4DBF, 0x20000...0x2A6DF, 0x2A700...0x2B73F, 0x2B740...0x2B81F,
        0x2B920...0x2CEAF, 0xF900...0xFAFF, 0x2F800...0x2FA1F:
        return true
    default: return false
    }
}
