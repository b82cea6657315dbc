package mmcli

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer
import android.content.Context
import org.json.JSONObject
import java.io.File

/** Hugging Face's own tokenizers, the library that mmcli trains with. */
class FileTokenizer(path: File) : Tokenizer {
    private val tokenizer = HuggingFaceTokenizer.newInstance(path.toPath(), mapOf("addSpecialTokens" to "false"))

    override fun encode(text: String): LongArray = tokenizer.encode(text, false, false).ids

    override fun decode(ids: LongArray): String = tokenizer.decode(ids)
}

/** A conversation with the export in assets/model: model.ort, tokenizer.json and genai_config.json. */
fun openChat(context: Context): Chat {
    val folder = File(context.filesDir, "model").apply { mkdirs() }
    for (name in listOf("model.ort", "tokenizer.json", "genai_config.json")) {
        val target = File(folder, name) // ONNX Runtime and the tokenizer read files
        if (!target.exists()) context.assets.open("model/$name").use { from -> target.outputStream().use(from::copyTo) }
    }
    val config = JSONObject(File(folder, "genai_config.json").readText()).getJSONObject("model")
    val stop = config.getJSONArray("eos_token_id").let { ids -> (0 until ids.length()).map(ids::getInt).toSet() }
    val decoder = Decoder(File(folder, "model.ort").path, config.getInt("context_length"))
    return Chat(decoder, FileTokenizer(File(folder, "tokenizer.json")), stop)
}
