// Runs the Android files outside of Android. Arguments: GRAPH CONTEXT TEXTS, and replies to the messages on stdin; or none,
// and samples with the numbers on stdin.

import java.io.DataInputStream
import java.io.File
import mmcli.Chat
import mmcli.Decoder
import mmcli.Sampling
import mmcli.Tokenizer
import mmcli.sample

/** Texts and their ids, a line each: `id id id<TAB>text`, line breaks as \n. Decoding gives the ids. */
class Listed(file: String) : Tokenizer {
    private val idsOf = File(file).readLines().map { it.split("\t") }.associate { (ids, text) ->
        text.replace("\\n", "\n") to ids.split(" ").map(String::toLong).toLongArray()
    }

    override fun encode(text: String) = idsOf[text] ?: error("not listed: $text")

    override fun decode(ids: LongArray) = ids.joinToString(" ")
}

fun main(arguments: Array<String>) {
    if (arguments.isEmpty()) return samples(DataInputStream(System.`in`.buffered()))
    val (graph, context, texts, stop) = arguments
    val greedy = Sampling(temperature = 0.0, repetitionPenalty = 1.0)
    Decoder(graph, context.toInt(), threads = 1).use { decoder ->
        val chat = Chat(decoder, Listed(texts), stop.split(",").map(String::toInt).toSet(), greedy)
        for (message in generateSequence(::readlnOrNull)) {
            var shown = ""
            val reply = chat.reply(message, maxTokens = 24) { shown = it }
            check(reply == shown)
            println(reply)
        }
    }
}

private fun samples(from: DataInputStream) = repeat(from.readInt()) {
    val logits = FloatArray(from.readInt()) { from.readFloat() }
    val seen = List(from.readInt()) { from.readInt() }
    val sampling = Sampling(from.readDouble(), from.readInt(), from.readDouble(), from.readDouble())
    println(sample(logits, seen, sampling, from.readDouble()))
}
