// What the app uses of Android, by its published signatures, so that it can be compiled without.
package android.app
open class Activity : android.content.Context() {
    open fun onCreate(saved: android.os.Bundle?) {}
    open fun onDestroy() {}
    fun setContentView(view: android.view.View) {}
    fun runOnUiThread(work: Runnable) {}
}
class ActivityManager {
    class MemoryInfo { @JvmField var availMem = 0L; @JvmField var threshold = 0L; @JvmField var lowMemory = false }
    fun getMemoryInfo(out: MemoryInfo) {}
}
