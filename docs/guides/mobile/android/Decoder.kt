package mmcli

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import java.nio.FloatBuffer
import java.nio.LongBuffer

/**
 * An exported graph (`model.ort` or `model.onnx`) in ONNX Runtime. The keys and values of each layer, which come out of one
 * run, go into the next as they are.
 */
class Decoder(path: String, override val context: Int, threads: Int = 4) : Model, AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session = environment.createSession(path, OrtSession.SessionOptions().apply { setIntraOpNumThreads(threads) })
    private val pastNames = session.inputNames.filter { it.startsWith("past_key_values.") }
    private val outputs = pastNames.map(::present).toSet() + "logits"
    private val empty: Map<String, OnnxTensor>
    private var last: OrtSession.Result? = null // owns the keys and values
    private var length = 0

    init {
        val (_, heads, _, size) = (session.inputInfo.getValue(pastNames.first()).info as TensorInfo).shape.toList()
        empty = pastNames.associateWith {
            OnnxTensor.createTensor(environment, FloatBuffer.allocate(0), longArrayOf(1, heads, 0, size))
        }
    }

    override fun append(ids: LongArray): FloatArray {
        val total = length + ids.size
        val new = longTensor(ids)
        val mask = longTensor(LongArray(total) { 1 })
        val inputs = HashMap<String, OnnxTensor>(empty)
        last?.let { held -> for (name in pastNames) inputs[name] = held.get(present(name)).get() as OnnxTensor }
        inputs["input_ids"] = new
        inputs["attention_mask"] = mask
        val result = new.use { mask.use { session.run(inputs, outputs) } }
        last?.close()
        last = result
        length = total
        val logits = (result.get("logits").get() as OnnxTensor).floatBuffer
        return FloatArray(logits.remaining()).also(logits::get)
    }

    override fun clear() {
        last?.close()
        last = null
        length = 0
    }

    override fun close() {
        clear()
        empty.values.forEach(OnnxTensor::close)
        session.close()
    }

    private fun longTensor(values: LongArray) =
        OnnxTensor.createTensor(environment, LongBuffer.wrap(values), longArrayOf(1, values.size.toLong()))
}

private fun present(past: String) = past.replace("past_key_values", "present")
