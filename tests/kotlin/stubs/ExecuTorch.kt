// What the app uses of ExecuTorch's library for Android, by its published signatures, so that the rest can be compiled.
package org.pytorch.executorch

class Tensor private constructor() {
    val dataAsFloatArray: FloatArray get() = TODO()

    companion object {
        @JvmStatic fun fromBlob(data: LongArray, shape: LongArray): Tensor = TODO()
    }
}

class EValue private constructor() {
    fun toTensor(): Tensor = TODO()

    companion object {
        @JvmStatic fun from(tensor: Tensor): EValue = TODO()
    }
}

class Module private constructor() {
    fun forward(vararg inputs: EValue): Array<EValue> = TODO()

    fun destroy(): Unit = TODO()

    companion object {
        @JvmStatic fun load(path: String): Module = TODO()
    }
}
