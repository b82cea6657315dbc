// The part of ONNX Runtime's Java API that docs/guides/mobile/android/Decoder.kt uses, carried out by ONNX Runtime in a
// Python process (session.py), where no package of it for the JVM is at hand.

package ai.onnxruntime

import java.io.DataInputStream
import java.io.DataOutputStream
import java.nio.FloatBuffer
import java.nio.LongBuffer
import java.util.Optional

interface OnnxValue : AutoCloseable

interface ValueInfo

class TensorInfo(val shape: LongArray) : ValueInfo

class NodeInfo(val info: ValueInfo)

class OnnxTensor private constructor(private val longs: LongArray?, private val floats: FloatArray?, private val shape: LongArray) : OnnxValue {
    private var closed = false
    val floatBuffer: FloatBuffer get() = FloatBuffer.wrap(unclosed().floats!!)

    override fun close() {
        check(!closed) { "closed twice" }
        closed = true
    }

    private fun unclosed() = also { check(!closed) { "used after it was closed" } }

    internal fun write(out: DataOutputStream) {
        unclosed()
        out.writeBoolean(longs != null)
        out.writeInt(shape.size)
        shape.forEach(out::writeLong)
        longs?.forEach(out::writeLong)
        floats?.forEach(out::writeFloat)
    }

    companion object {
        fun createTensor(environment: OrtEnvironment, data: LongBuffer, shape: LongArray) =
            OnnxTensor(LongArray(data.remaining()).also(data::get), null, shape)

        fun createTensor(environment: OrtEnvironment, data: FloatBuffer, shape: LongArray) =
            OnnxTensor(null, FloatArray(data.remaining()).also(data::get), shape)

        internal fun read(from: DataInputStream): OnnxTensor {
            val shape = LongArray(from.readInt()) { from.readLong() }
            return OnnxTensor(null, FloatArray(shape.fold(1, Long::times).toInt()) { from.readFloat() }, shape)
        }
    }
}

class OrtEnvironment private constructor() {
    fun createSession(path: String, options: OrtSession.SessionOptions) = OrtSession(path)

    companion object {
        fun getEnvironment() = OrtEnvironment()
    }
}

class OrtSession internal constructor(path: String) : AutoCloseable {
    private val process = ProcessBuilder(System.getenv("PYTHON"), System.getenv("SESSION"), path)
        .redirectError(ProcessBuilder.Redirect.INHERIT).start()
    private val out = DataOutputStream(process.outputStream.buffered())
    private val from = DataInputStream(process.inputStream.buffered())
    val inputInfo: Map<String, NodeInfo> = List(from.readInt()) {
        from.readUTF() to NodeInfo(TensorInfo(LongArray(from.readInt()) { from.readLong() }))
    }.toMap()
    val inputNames: Set<String> get() = inputInfo.keys

    fun run(inputs: Map<String, OnnxTensor>, outputs: Set<String>): Result {
        check(inputs.keys == inputNames) { "inputs ${inputs.keys}" }
        out.writeInt(inputs.size)
        for ((name, tensor) in inputs) {
            out.writeUTF(name)
            tensor.write(out)
        }
        out.writeInt(outputs.size)
        outputs.forEach(out::writeUTF)
        out.flush()
        return Result(outputs.associateWith { OnnxTensor.read(from) })
    }

    override fun close() = out.close()

    class SessionOptions {
        fun setIntraOpNumThreads(threads: Int) = check(threads > 0)
    }

    class Result internal constructor(private val values: Map<String, OnnxTensor>) : AutoCloseable {
        fun get(name: String): Optional<OnnxValue> = Optional.ofNullable(values[name])

        override fun close() = values.values.forEach(OnnxTensor::close)
    }
}
