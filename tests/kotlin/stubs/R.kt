// What the app uses of Android, by its published signatures, so that it can be compiled without.
package app.llmasos
object R { object string { const val ask = 1; const val wait = 2; const val ready = 3 } }
