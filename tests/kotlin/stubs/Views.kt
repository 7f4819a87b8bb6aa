// What the app uses of Android, by its published signatures, so that it can be compiled without.
package android.view
open class View { var isEnabled = true; fun setPadding(a: Int, b: Int, c: Int, d: Int) {}; fun setOnClickListener(l: OnClickListener) {}; fun interface OnClickListener { fun onClick(v: View?) } }
