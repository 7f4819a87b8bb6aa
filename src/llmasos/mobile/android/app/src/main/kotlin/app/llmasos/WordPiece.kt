package app.llmasos

import java.text.Normalizer
import java.util.Locale
import org.json.JSONObject

/**
 * BERT's tokenizer, as `tokenizer.json` describes it.
 *
 * @param content `tokenizer.json`.
 * @param reader `reader.json`: what stands around a text.
 */
class WordPiece(content: JSONObject, reader: JSONObject) {
    private val words = HashMap<String, Int>()
    private val special = HashMap<String, Int>()
    private val before = reader.getJSONArray("before").ints()
    private val after = reader.getJSONArray("after").ints()
    private val unknown: Int
    private val goingOn: String
    private val mostCharacters: Int
    private val cleans: Boolean
    private val lowers: Boolean
    private val strips: Boolean
    private val splitsHan: Boolean

    init {
        val model = content.getJSONObject("model")
        val vocabulary = model.getJSONObject("vocab")
        for (word in vocabulary.keys()) words[word.toString()] = vocabulary.getInt(word.toString())
        unknown = words[model.getString("unk_token")] ?: throw BundleError("tokenizer.json has no word for unknown ones")
        goingOn = model.getString("continuing_subword_prefix")
        mostCharacters = model.getInt("max_input_chars_per_word")
        val added = content.getJSONArray("added_tokens")
        for (i in 0 until added.length()) added.getJSONObject(i).let { special[it.getString("content")] = it.getInt("id") }
        val rules = content.getJSONObject("normalizer")
        cleans = rules.getBoolean("clean_text")
        lowers = rules.getBoolean("lowercase")
        splitsHan = rules.getBoolean("handle_chinese_chars")
        strips = if (rules.isNull("strip_accents")) lowers else rules.getBoolean("strip_accents")
    }

    /** Return the ids of a text with what stands around it, cut to so many. */
    fun ids(text: String, longest: Int): LongArray {
        val room = maxOf(0, longest - before.size - after.size)
        return (before + inside(text).take(room) + after).map(Int::toLong).toLongArray()
    }

    private fun inside(text: String): List<Int> {
        val found = ArrayList<Int>()
        var start = 0
        var at = 0
        while (at < text.length) { // special tokens that stand in the text are themselves
            val token = special.keys.filter { text.startsWith(it, at) }.maxByOrNull { it.length }
            if (token == null) {
                at++
                continue
            }
            pieces(text.substring(start, at), found)
            found += special.getValue(token)
            at += token.length
            start = at
        }
        pieces(text.substring(start), found)
        return found
    }

    private fun pieces(text: String, found: MutableList<Int>) {
        for (word in split(normal(text))) found += pieces(word)
    }

    /** Cut a word into the longest pieces that are known, from its beginning; or it is unknown. */
    private fun pieces(word: IntArray): List<Int> {
        if (word.size > mostCharacters) return listOf(unknown)
        val found = ArrayList<Int>()
        var start = 0
        while (start < word.size) {
            var end = word.size
            var id: Int? = null
            while (end > start && id == null) {
                val piece = String(word, start, end - start)
                id = words[if (start == 0) piece else goingOn + piece]
                if (id == null) end--
            }
            found += id ?: return listOf(unknown)
            start = end
        }
        return found
    }

    private fun normal(text: String): String {
        var out = text
        if (cleans) out = out.mapPoints { if (isDropped(it)) "" else if (isSpace(it)) " " else null }
        if (splitsHan) out = out.mapPoints { if (isHan(it)) " ${String(Character.toChars(it))} " else null }
        if (strips) {
            out = Normalizer.normalize(out, Normalizer.Form.NFD)
            out = out.mapPoints { if (Character.getType(it) == Character.NON_SPACING_MARK.toInt()) "" else null }
        }
        // one character at a time, so that no letter depends on its place in the word
        if (lowers) out = out.mapPoints { String(Character.toChars(it)).lowercase(Locale.ROOT) }
        return out
    }

    private fun split(text: String): List<IntArray> {
        val found = ArrayList<IntArray>()
        val word = ArrayList<Int>()
        fun end() {
            if (word.isNotEmpty()) found += word.toIntArray()
            word.clear()
        }
        for (point in text.points()) {
            when {
                isSpace(point) -> end()
                isPunctuation(point) -> {
                    end()
                    found += intArrayOf(point)
                }
                else -> word += point
            }
        }
        end()
        return found
    }
}

private fun String.points(): IntArray = IntArray(codePointCount(0, length)).also { out ->
    var at = 0
    for (i in out.indices) {
        out[i] = codePointAt(at)
        at += Character.charCount(out[i])
    }
}

/** Put something else in the place of characters; null leaves one as it is. */
private fun String.mapPoints(change: (Int) -> String?): String = buildString {
    for (point in this@mapPoints.points()) change(point)?.let { append(it) } ?: appendCodePoint(point)
}

private fun isSpace(point: Int): Boolean =
    point in 9..13 || point == 0x85 || Character.isSpaceChar(point)

private fun isDropped(point: Int): Boolean {
    if (point == 0xFFFD) return true
    if (point == 9 || point == 10 || point == 13) return false // of the spaces among control characters, these
    return Character.getType(point).toByte() in DROPPED
}

private fun isPunctuation(point: Int): Boolean =
    point in 33..47 || point in 58..64 || point in 91..96 || point in 123..126 ||
        Character.getType(point).toByte() in PUNCTUATION

private fun isHan(point: Int): Boolean = HAN.any { point in it }

private val DROPPED = byteArrayOf(Character.CONTROL, Character.FORMAT, Character.PRIVATE_USE)

private val PUNCTUATION = byteArrayOf(
    Character.CONNECTOR_PUNCTUATION, Character.DASH_PUNCTUATION, Character.START_PUNCTUATION,
    Character.END_PUNCTUATION, Character.INITIAL_QUOTE_PUNCTUATION, Character.FINAL_QUOTE_PUNCTUATION,
    Character.OTHER_PUNCTUATION,
)

/** What BERT cuts into single characters. */
private val HAN = listOf(
    0x4E00..0x9FFF, 0x3400..0x4DBF, 0x20000..0x2A6DF, 0x2A700..0x2B73F, 0x2B740..0x2B81F, 0x2B920..0x2CEAF,
    0xF900..0xFAFF, 0x2F800..0x2FA1F,
)
