package app.llmasos

import android.app.Activity
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView
import java.util.concurrent.Executors

/** One text in, the answer out. */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    private lateinit var button: Button
    private lateinit var answer: TextView
    private lateinit var state: TextView
    private var model: LocalModel? = null

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        val texts = List(2) { EditText(this).apply { minLines = 2 } }
        button = Button(this).apply {
            setText(R.string.ask)
            setOnClickListener { ask(texts.map { it.text.toString() }) }
        }
        answer = TextView(this).apply { textSize = 18f }
        state = TextView(this).apply { setText(R.string.wait) }
        val pad = (16 * resources.displayMetrics.density).toInt()
        val column = LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            setPadding(pad, pad, pad, pad)
            addView(state)
        }
        setContentView(ScrollView(this).apply { addView(column) })
        worker.execute {
            guarded {
                val opened = openModel(this) { apart -> show { state.text = getString(R.string.ready, apart) } }
                model = opened
                val asked = if (opened.tag == "sentence-similarity") texts else texts.take(1)
                show { for ((place, view) in (asked + button + answer).withIndex()) column.addView(view, place) }
            }
        }
    }

    private fun ask(texts: List<String>) = worker.execute {
        guarded {
            val opened = model ?: return@guarded
            val said = if (opened.tag == "sentence-similarity") {
                "%.3f".format(opened.similarity(texts[0], texts[1]))
            } else {
                opened.classify(texts[0]).joinToString("\n") { "%s  %.1f %%".format(it.name, 100 * it.score) }
            }
            show { answer.text = said }
        }
    }

    private fun guarded(work: () -> Unit) = try {
        work()
    } catch (error: Exception) { // also a runtime's own
        show { state.text = error.message }
    }

    private fun show(change: () -> Unit) = runOnUiThread { change() }

    override fun onDestroy() {
        worker.execute { model?.close() }
        worker.shutdown()
        super.onDestroy()
    }
}
