package app.llmasos

import kotlin.math.abs
import kotlin.math.exp
import kotlin.math.max
import kotlin.math.sqrt
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/** A loaded model: inputs of one row in, its numbers out. */
interface Program {
    fun run(inputs: List<LongArray>): FloatArray

    fun close()
}

/** A label and its probability. */
data class Label(val name: String, val score: Double)

/**
 * An exported model on this device. It is loaded only where there is memory for it, and usable only where it makes the
 * same tokens and gives the same numbers as where it was exported.
 *
 * @param read returns the text of a file of the export.
 * @param freeBytes memory that this app may still take.
 * @param open opens the program, after the memory was checked.
 */
class LocalModel(private val read: (String) -> String, freeBytes: Long, open: () -> Program) {
    private val manifest = json("llmasos.json")
    private val certificate = json("certificate.json")
    private val golden = json("golden.json")
    private val reader = json("reader.json")
    private val task = manifest.getJSONObject("task")
    private val artifact = manifest.getJSONObject("artifact")
    private val inputs = artifact.getJSONArray("inputs").strings()
    private val longest = artifact.getInt("longest")
    private val tokenizer = WordPiece(json("tokenizer.json"), reader)
    private val program: Program

    /** What the model is for: "text-classification", "sentence-similarity". */
    val tag: String = task.getString("tag")

    /** Bytes that the model took where it was exported, beside its runtime. */
    val neededBytes: Long = certificate.getLong("model_bytes")

    init {
        if (freeBytes < neededBytes) {
            throw MemoryError("the model needs ${neededBytes / MB} MB of memory, and ${freeBytes / MB} MB are free")
        }
        checkTokens()
        program = open()
    }

    /** Label a text, the likeliest label first; of several labels at once, each with its own probability. */
    fun classify(text: String): List<Label> {
        expect("text-classification")
        val logits = run(tokenizer.ids(text, longest)).map(Float::toDouble)
        val scores = if (task.getBoolean("multi_label")) logits.map { 1 / (1 + exp(-it)) } else softmax(logits)
        val names = task.getJSONArray("labels").strings()
        return names.zip(scores).map { (name, score) -> Label(name, score) }.sortedByDescending { it.score }
    }

    /** Return a text as a vector of length 1. */
    fun embed(text: String): FloatArray {
        expect("sentence-similarity")
        val found = run(tokenizer.ids(text, longest))
        val length = max(sqrt(found.fold(0.0) { sum, x -> sum + x.toDouble() * x }), 1e-12)
        return FloatArray(found.size) { (found[it] / length).toFloat() }
    }

    /** Return how alike two texts are, from -1 to 1. */
    fun similarity(one: String, other: String): Double {
        val (a, b) = embed(one) to embed(other)
        return a.indices.sumOf { a[it].toDouble() * b[it] }
    }

    /**
     * Run the golden rows; return the largest difference, as a share of the largest golden number.
     *
     * @throws ParityError if they give other numbers here.
     */
    fun verify(): Double {
        val examples = golden.getJSONArray("examples").objects()
        var largest = 1e-30
        var worst = 0.0
        var row = 0
        for ((number, example) in examples.withIndex()) {
            val wanted = example.getJSONArray("outputs").numbers()
            val found = example.getJSONArray("ids").arrays().flatMap { run(it.longs()).toList() }
            if (found.size != wanted.size) {
                throw ParityError("golden row ${number + 1} gives ${found.size} numbers, and gave ${wanted.size}")
            }
            for ((here, there) in found.zip(wanted)) {
                largest = max(largest, abs(there))
                val apart = abs(here - there)
                if (!(apart <= worst)) { // also where it is no number
                    worst = if (apart.isNaN()) Double.POSITIVE_INFINITY else apart
                    row = number
                }
            }
        }
        val allowed = certificate.getJSONObject("tolerance").getDouble("outputs")
        if (!(worst / largest <= allowed)) {
            throw ParityError("golden row ${row + 1} differs by $worst, ${worst / largest} of the largest; $allowed is allowed")
        }
        return worst / largest
    }

    fun close() = program.close()

    private fun run(ids: LongArray): FloatArray =
        program.run(inputs.map { if (it == "input_ids") ids else LongArray(ids.size) })

    private fun checkTokens() {
        for (example in reader.getJSONArray("examples").objects()) {
            val text = example.getString("text")
            val found = tokenizer.ids(text, example.getInt("longest"))
            val wanted = example.getJSONArray("ids").longs()
            if (!found.contentEquals(wanted)) {
                throw ParityError(
                    "the tokenizer makes other tokens of \"${text.take(40)}\" here: " +
                        "${found.take(12)}, not ${wanted.take(12)}",
                )
            }
        }
    }

    private fun expect(wanted: String) {
        if (tag != wanted) throw BundleError("this is a model for $tag, not for $wanted", "take the other function")
    }

    private fun json(name: String): JSONObject = try {
        JSONObject(read(name))
    } catch (error: JSONException) {
        throw BundleError("$name is damaged: ${error.message}")
    }
}

private const val MB = 1_000_000L

private fun softmax(logits: List<Double>): List<Double> {
    val most = logits.max()
    val powers = logits.map { exp(it - most) }
    return powers.map { it / powers.sum() }
}

fun JSONArray.ints(): List<Int> = List(length()) { getInt(it) }

private fun JSONArray.longs(): LongArray = LongArray(length()) { getLong(it) }

private fun JSONArray.strings(): List<String> = List(length()) { get(it).toString() }

private fun JSONArray.objects(): List<JSONObject> = List(length()) { getJSONObject(it) }

private fun JSONArray.arrays(): List<JSONArray> = List(length()) { getJSONArray(it) }

/** All numbers of nested lists. */
private fun JSONArray.numbers(): List<Double> =
    List(length()) { get(it) }.flatMap { if (it is JSONArray) it.numbers() else listOf((it as Number).toDouble()) }
