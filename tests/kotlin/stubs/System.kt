// What the app uses of Android, by its published signatures, so that it can be compiled without.
package android.os
class Bundle
object Build { @JvmField val FINGERPRINT: String = "" }
