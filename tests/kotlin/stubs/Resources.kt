// What the app uses of Android, by its published signatures, so that it can be compiled without.
package android.content.res
class AssetManager { fun open(name: String): java.io.InputStream = TODO() }
class Resources { val displayMetrics: android.util.DisplayMetrics get() = TODO() }
