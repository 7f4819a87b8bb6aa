package app.llmasos

/** What is wrong, and what to do. */
sealed class ModelError(val reason: String, val hint: String) : Exception("$reason\nhint: $hint")

/** Files that are missing or damaged. */
class BundleError(reason: String, hint: String = "export the model again") : ModelError(reason, hint)

/** Tokens or numbers are not those of the model where it was exported. */
class ParityError(reason: String, hint: String = "this device must not run this model") : ModelError(reason, hint)

/** The phone lacks memory. */
class MemoryError(reason: String, hint: String = "close other apps, or take a smaller model") : ModelError(reason, hint)
