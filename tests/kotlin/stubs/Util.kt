// What the app uses of Android, by its published signatures, so that it can be compiled without.
package android.util
class DisplayMetrics { @JvmField var density = 1f }
