package app.llmasos

import java.io.File
import org.json.JSONArray
import org.json.JSONObject

/** Runs the app's model on numbers that ExecuTorch gave in Python; prints what it says, as JSON. */
private class Recorded(content: JSONObject) : Program {
    private val known = content.keys().asSequence().associate { it.toString() to content.getJSONArray(it.toString()) }

    override fun run(inputs: List<LongArray>): FloatArray {
        val found = known[inputs[0].joinToString(",")] ?: error("other tokens: ${inputs[0].toList()}")
        return FloatArray(found.length()) { found.getDouble(it).toFloat() }
    }

    override fun close() = Unit
}

/** Arguments: the export, the recorded numbers, free bytes, and texts. */
fun main(arguments: Array<String>) {
    val folder = File(arguments[0])
    val said = JSONObject()
    var opened = false
    try {
        val model = LocalModel({ File(folder, it).readText() }, arguments[2].toLong()) {
            opened = true
            Recorded(JSONObject(File(arguments[1]).readText()))
        }
        said.put("apart", model.verify())
        val texts = arguments.drop(3)
        if (model.tag == "sentence-similarity") {
            said.put("similarity", model.similarity(texts[0], texts[1]))
        } else {
            val answers = texts.map { text -> JSONObject(model.classify(text).associate { it.name to it.score }) }
            said.put("answers", JSONArray(answers))
        }
    } catch (error: ModelError) {
        said.put("error", error.javaClass.simpleName).put("reason", error.reason)
    }
    println(said.put("opened", opened))
}
