package app.llmasos

import android.app.ActivityManager
import android.content.Context
import android.os.Build
import java.io.File
import java.security.MessageDigest
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

private const val MODEL = "model.pte"

/**
 * Open the model that this app carries.
 *
 * Golden rows run at the first start, and again after the model, the app or the system has changed: what was found is
 * kept under a name that tells these apart.
 *
 * @throws ModelError if this device lacks the memory, or gives other tokens or numbers.
 */
fun openModel(context: Context, told: (Double) -> Unit): LocalModel {
    val model = LocalModel({ context.text(it) }, freeBytes(context)) { ExecuTorchProgram(onDisk(context)) }
    val known = context.getSharedPreferences("llmasos", Context.MODE_PRIVATE)
    val here = sha256("${context.text("certificate.json")}\n${Build.FINGERPRINT}\n${installed(context)}")
    if (!known.contains(here)) {
        try {
            known.edit().clear().putFloat(here, model.verify().toFloat()).apply()
        } catch (error: ModelError) {
            model.close()
            throw error
        }
    }
    told(known.getFloat(here, 0f).toDouble())
    return model
}

/** ExecuTorch's program: one row in, its numbers out. */
private class ExecuTorchProgram(file: File) : Program {
    private val module = Module.load(file.path)

    override fun run(inputs: List<LongArray>): FloatArray {
        val given = inputs.map { EValue.from(Tensor.fromBlob(it, longArrayOf(1, it.size.toLong()))) }
        return module.forward(*given.toTypedArray())[0].toTensor().dataAsFloatArray
    }

    override fun close() = module.destroy()
}

/** Return the memory that can still be taken before the system begins to end apps. */
private fun freeBytes(context: Context): Long {
    val found = ActivityManager.MemoryInfo()
    (context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager).getMemoryInfo(found)
    return if (found.lowMemory) 0 else found.availMem - found.threshold
}

/** Return the program as a file, which ExecuTorch needs; it is copied once for each version of the app. */
private fun onDisk(context: Context): File {
    val file = File(context.filesDir, "${installed(context)}-$MODEL")
    if (!file.exists()) {
        context.filesDir.listFiles { old -> old.name.endsWith(MODEL) }?.forEach { it.delete() }
        val part = File(context.filesDir, "part")
        context.assets.open(MODEL).use { source -> part.outputStream().use { source.copyTo(it) } }
        if (!part.renameTo(file)) throw BundleError("$file cannot be written", "free some space on the device")
    }
    return file
}

private fun installed(context: Context): Long =
    context.packageManager.getPackageInfo(context.packageName, 0).lastUpdateTime

private fun Context.text(name: String): String = assets.open(name).bufferedReader().use { it.readText() }

private fun sha256(text: String): String =
    MessageDigest.getInstance("SHA-256").digest(text.toByteArray()).joinToString("") { "%02x".format(it) }
