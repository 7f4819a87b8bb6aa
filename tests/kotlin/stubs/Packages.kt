// What the app uses of Android, by its published signatures, so that it can be compiled without.
package android.content.pm
class PackageManager { fun getPackageInfo(name: String, flags: Int): PackageInfo = TODO() }
class PackageInfo { @JvmField var lastUpdateTime = 0L }
