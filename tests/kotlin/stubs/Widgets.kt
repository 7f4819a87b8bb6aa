// What the app uses of Android, by its published signatures, so that it can be compiled without.
package android.widget
import android.content.Context
import android.view.View
open class TextView(c: Context) : View() { var text: CharSequence? = null; var textSize = 1f; var minLines = 1; fun setText(id: Int) {} }
class Button(c: Context) : TextView(c)
class EditText(c: Context) : TextView(c)
open class LinearLayout(c: Context) : View() { var orientation = 0; fun addView(v: View) {}; fun addView(v: View, at: Int) {}; companion object { const val VERTICAL = 1 } }
class ScrollView(c: Context) : View() { fun addView(v: View) {} }
