// What the app uses of Android, by its published signatures, so that it can be compiled without.
package android.content
open class Context {
    fun getSharedPreferences(name: String, mode: Int): SharedPreferences = TODO()
    fun getSystemService(name: String): Any = TODO()
    fun getString(id: Int, vararg values: Any): String = TODO()
    val filesDir: java.io.File get() = TODO()
    val assets: android.content.res.AssetManager get() = TODO()
    val resources: android.content.res.Resources get() = TODO()
    val packageManager: android.content.pm.PackageManager get() = TODO()
    val packageName: String get() = TODO()
    companion object { const val MODE_PRIVATE = 0; const val ACTIVITY_SERVICE = "activity" }
}
interface SharedPreferences {
    fun contains(key: String): Boolean
    fun getFloat(key: String, or: Float): Float
    fun edit(): Editor
    interface Editor { fun clear(): Editor; fun putFloat(key: String, value: Float): Editor; fun apply() }
}
