// The model of this folder in ONNX Runtime Web. In: { load }, { generate: { messages, sampling } }, { stop }.
// Out: { progress: { loaded, total } }, { ready }, { delta }, { done }, { error: { what, fix } }.

import * as ort from "../runtime/ort.js";
import { ReplyStream, promptIds } from "./chat.js";
import { sample } from "./sampler.js";
import { Tokenizer } from "./tokenizer.js";

const PREFILL_CHUNK = 256; // tokens of a prompt that run at once: bounds the memory of their activations
const ROOT = new URL("..", import.meta.url);

class Failure extends Error {
  constructor(what, fix) {
    super(what);
    this.fix = fix;
  }
}

let engine;
let stopped = false;

onmessage = async ({ data }) => {
  if (data.stop) {
    stopped = true;
    return;
  }
  try {
    if (data.load) {
      engine ??= await Engine.load((progress) => postMessage({ progress }));
      postMessage({ ready: engine.about });
    } else {
      stopped = false;
      await engine.reply(data.generate.messages, data.generate.sampling, (delta) => postMessage({ delta }));
      postMessage({ done: true });
    }
  } catch (error) {
    postMessage({ error: { what: error.message ?? String(error), fix: error.fix ?? "Reload the page; if it stays, export the model again: mmcli export web" } });
  }
};

// Let messages such as { stop } come in; unlike a timer this waits for nothing else.
const channel = new MessageChannel();
const breathe = () => new Promise((resolve) => {
  channel.port1.onmessage = resolve;
  channel.port2.postMessage(null);
});

async function read(path) {
  const answer = await fetch(new URL(path, ROOT)).catch(() => null);
  if (!answer?.ok) throw new Failure(`${path} cannot be read${answer ? ` (${answer.status})` : ""}.`, "Put the whole folder of the export on the server, then reload the page.");
  return answer;
}

// The bytes of a file, with progress.
async function download(path, total, report) {
  const bytes = new Uint8Array(total);
  const reader = (await read(path)).body.getReader();
  let loaded = 0;
  for (let told = 0; ;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (loaded + value.length <= total) bytes.set(value, loaded);
    loaded += value.length;
    if (loaded - told > total / 200) report({ loaded: (told = Math.min(loaded, total - 1)), total });
  }
  if (loaded !== total) throw new Failure(`${path} has ${loaded} bytes of ${total}.`, "Copy the folder of the export to the server again, then reload the page.");
  report({ loaded, total });
  return bytes;
}

class Engine {
  #cached = []; // the ids whose keys and values are in #past
  #past = {};

  static async load(report) {
    ort.env.wasm.wasmPaths = { wasm: new URL("runtime/ort.wasm", ROOT).href };
    ort.env.logLevel = "error";
    const about = await (await read("web.json")).json();
    const definition = await (await read("tokenizer.json")).json();
    const graph = await download(about.graph, about.bytes, report);
    const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
    return new Engine(about, new Tokenizer(definition, about.controls, about.unwritable), session);
  }

  constructor(about, tokenizer, session) {
    this.about = { name: about.name, chat: about.chat !== null };
    this.model = about;
    this.tokenizer = tokenizer;
    this.session = session;
    this.pastInputs = session.inputMetadata.filter(({ name }) => name.startsWith("past_key_values."));
    this.#truncate(0);
  }

  // Write a reply; say(delta) is called with { content, reasoning }, at the end with { finish, tokens }.
  async reply(messages, asked, say) {
    const config = { ...this.model.sampling, seed: Math.floor(Math.random() * 2 ** 32), ...asked };
    const { ids, dropped } = this.#prompt(messages, config.max_tokens);
    if (dropped) say({ dropped });
    const stops = new Set(this.model.stop);
    const seen = ids.filter((id) => !stops.has(id));
    const isThinking = (this.model.chat?.prompt ?? "").trimEnd().endsWith("<think>");
    const stream = new ReplyStream(this.tokenizer, isThinking);
    const limit = Math.min(ids.length + config.max_tokens, this.model.context);
    let finish = ids.length + config.max_tokens <= this.model.context ? "length" : "context";
    let tokens = 0;
    let logits = await this.#prefill(ids);
    for (let position = ids.length; logits && position < limit; position++) {
      const id = sample(logits, config, seen, position);
      if (stops.has(id)) {
        finish = "stop";
        break;
      }
      tokens++;
      seen.push(id);
      const delta = stream.push(id);
      if (delta.content || delta.reasoning) say(delta);
      await breathe();
      if (stopped) break;
      if (position + 1 < limit) logits = await this.#run([id]);
    }
    say({ ...stream.flush(), finish: stopped ? "stopped" : finish, tokens });
  }

  // The ids of a prompt; the oldest turns are left out where they do not fit.
  #prompt(messages, maxTokens) {
    const { context, chat, bos } = this.model;
    if (!chat) {
      const ids = [...(bos === null ? [] : [bos]), ...this.tokenizer.encode(messages.at(-1).content)];
      return { ids: this.#fitting(ids), dropped: 0 };
    }
    const room = Math.min(maxTokens, Math.floor(context / 4));
    const system = messages[0].role === "system" ? messages.slice(0, 1) : [];
    if (system.length && !chat.system) throw new Failure("This model's chat template has no system prompt.", "Clear the system prompt in the settings.");
    for (let dropped = 0; ; dropped += 2) {
      const rest = messages.slice(system.length + dropped);
      const ids = promptIds(this.tokenizer, chat, [...system, ...rest]);
      if (ids.length + room <= context || rest.length <= 1) return { ids: this.#fitting(ids), dropped };
    }
  }

  #fitting(ids) {
    const { context } = this.model;
    if (!ids.length) throw new Failure("The prompt is empty.", "Write a message first.");
    if (ids.length < context) return ids;
    throw new Failure(`The message has ${ids.length} tokens; the model's context is ${context}.`, "Shorten the message or the system prompt.");
  }

  // The logits after a prompt; what is in the cache already is kept. null: stopped meanwhile.
  async #prefill(ids) {
    let reused = 0;
    while (reused < this.#cached.length && reused < ids.length - 1 && this.#cached[reused] === ids[reused]) reused++;
    this.#truncate(reused);
    let logits = null;
    for (let start = reused; start < ids.length; start += PREFILL_CHUNK) {
      await breathe();
      if (stopped) return null;
      logits = await this.#run(ids.slice(start, start + PREFILL_CHUNK));
    }
    return logits;
  }

  // Append ids to the cache; the logits of the last, a Float32Array of the vocabulary.
  async #run(ids) {
    const total = this.#cached.length + ids.length;
    const results = await this.session.run({
      input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      attention_mask: new ort.Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
      ...this.#past,
    });
    for (const { name } of this.pastInputs) this.#past[name] = results[name.replace("past_key_values", "present")];
    this.#cached.push(...ids);
    const logits = results.logits.data;
    if (!logits.every(Number.isFinite)) throw new Failure("The model's logits are not finite.", "Export it again with --dtype fp32.");
    return logits;
  }

  // Keep the first `n` tokens of the cache: tensors [1, kv_heads, T, head_size].
  #truncate(n) {
    if (n > 0 && n === this.#cached.length) return;
    this.#cached.length = n;
    for (const { name, type, shape } of this.pastInputs) {
      const [heads, size] = [shape[1], shape[3]];
      const before = this.#past[name];
      const kept = new ort.Tensor(type, before ? new before.data.constructor(heads * n * size) : new Float32Array(0), [1, heads, n, size]);
      for (let head = 0; n && head < heads; head++) {
        const start = head * before.dims[2] * size;
        kept.data.set(before.data.subarray(start, start + n * size), head * n * size);
      }
      this.#past[name] = kept;
    }
  }
}
