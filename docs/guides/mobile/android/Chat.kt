package mmcli

/** A model with its cache: Decoder.kt is one over ONNX Runtime. */
interface Model {
    /** The most tokens of a sequence. */
    val context: Int

    /** Append tokens to the cache; the logits after the last of them. */
    fun append(ids: LongArray): FloatArray

    /** Forget everything. */
    fun clear()
}

/** Text to tokens and back: Main.kt has one over Hugging Face's tokenizers. */
interface Tokenizer {
    fun encode(text: String): LongArray

    fun decode(ids: LongArray): String
}

/**
 * A conversation with a model that was trained with mmcli's chat template (ChatML). For another model, look into
 * `chat_template` of tokenizer_config.json.
 *
 * @param stop tokens that end a reply: `eos_token_id` of genai_config.json.
 */
class Chat(
    private val model: Model,
    private val tokenizer: Tokenizer,
    private val stop: Set<Int>,
    private val sampling: Sampling = Sampling(),
    private val random: () -> Double = Math::random,
) {
    private val cached = ArrayList<Int>() // what the model has read and written

    /** Write a reply; `say` gets the whole text so far after each token. Returns it. */
    fun reply(message: String, maxTokens: Int = 256, say: (String) -> Unit = {}): String {
        val text = CONTROL.replace(message, "") // what a person types is never control
        var prompt = tokenizer.encode("<|im_start|>user\n$text<|im_end|>\n<|im_start|>assistant\n")
        if (cached.isNotEmpty()) prompt = tokenizer.encode("<|im_end|>\n") + prompt
        if (cached.size + prompt.size + minOf(maxTokens, model.context / 4) > model.context) {
            model.clear()
            cached.clear()
            prompt = tokenizer.encode("<|im_start|>user\n$text<|im_end|>\n<|im_start|>assistant\n")
        }
        require(prompt.size < model.context) { "the message has ${prompt.size} tokens, the context holds ${model.context}" }
        var logits = floatArrayOf()
        for (start in prompt.indices step CHUNK) {
            logits = model.append(prompt.copyOfRange(start, minOf(start + CHUNK, prompt.size)))
        }
        cached += prompt.map(Long::toInt)
        val reply = ArrayList<Long>()
        while (reply.size < maxTokens && cached.size < model.context) {
            val id = sample(logits, cached.filter { it !in stop }, sampling, random())
            if (id in stop) break
            reply += id.toLong()
            say(tokenizer.decode(reply.toLongArray()))
            logits = model.append(longArrayOf(id.toLong()))
            cached += id
        }
        return tokenizer.decode(reply.toLongArray())
    }

    private companion object {
        const val CHUNK = 256 // tokens of a prompt that run at once: bounds the memory of their activations
        val CONTROL = Regex("""<\|(im_start|im_end|endoftext)\|>|</?(think|tool_call|tool_response)>""")
    }
}
