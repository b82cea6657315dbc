// A byte-level BPE tokenizer read from tokenizer.json, with the ids of mmcli's Python tokenizer: no text becomes a
// control token. Supported are the forms that the export accepts (mmcli/export/web/tokenizer_form.py).

const GPT2 = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;
const CACHED_WORDS = 20_000;

// The 256 characters that stand for bytes in a byte-level vocabulary, by byte.
const SYMBOLS = (() => {
  const isPrintable = (byte) => (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte < 0xad) || byte >= 0xae;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(isPrintable(byte) ? byte : next++));
})();
const BYTES = new Map(SYMBOLS.map((symbol, byte) => [symbol, byte]));

// A pattern of tokenizer.json (Oniguruma) for JavaScript: white space of Unicode, and (?i:...) spelled out.
function toRegExp(pattern) {
  const caseless = (letter) => (letter === "s" ? "[sSſ]" : `[${letter}${letter.toUpperCase()}]`);
  const source = pattern
    .replace(/\(\?i:([^()]*)\)/g, (_, inside) => `(?:${inside.replace(/[a-z]/g, caseless)})`)
    .replaceAll(String.raw`\s`, String.raw`\p{White_Space}`)
    .replaceAll(String.raw`\S`, String.raw`\P{White_Space}`);
  return new RegExp(source, "gu");
}

// The pieces that `regExp` matches, and what stands between them.
function isolate(text, regExp) {
  const pieces = [];
  let end = 0;
  for (const match of text.matchAll(regExp)) {
    if (match.index > end) pieces.push(text.slice(end, match.index));
    if (match[0]) pieces.push(match[0]);
    end = match.index + match[0].length;
  }
  if (end < text.length) pieces.push(text.slice(end));
  return pieces;
}

// The steps that cut a text into words, each from a text to its pieces.
function splitters(part) {
  if (part.type === "Sequence") return part.pretokenizers.flatMap(splitters);
  if (part.type === "Split") {
    const regExp = toRegExp(part.pattern.Regex);
    return [(text) => isolate(text, regExp)];
  }
  if (part.type === "Digits") return [(text) => isolate(text, /\p{N}/gu)];
  if (part.type === "ByteLevel" && part.use_regex === false) return [];
  const regExp = toRegExp(GPT2);
  return [(text) => isolate(text, regExp)];
}

export class Tokenizer {
  #utf8 = new TextEncoder();
  #cache = new Map();
  #vocab;
  #ranks;
  #splitters;
  #normalize;
  #unwritable;
  #ignoreMerges;
  #bytesOf;

  // definition: the content of tokenizer.json. controls: { token: id } of those that steer the model.
  // unwritable: the inside of a regular expression's class; these characters become U+FFFD.
  constructor(definition, controls, unwritable = "") {
    const { model, normalizer, pre_tokenizer: preTokenizer } = definition;
    this.controls = new Map(Object.entries(controls));
    this.#vocab = new Map(Object.entries(model.vocab).filter(([token]) => !this.controls.has(token)));
    this.#ranks = new Map();
    for (const [rank, merge] of model.merges.entries()) {
      const [left, right] = typeof merge === "string" ? merge.split(" ") : merge;
      if (this.#vocab.has(left) && this.#vocab.has(right) && this.#vocab.has(left + right)) this.#ranks.set(`${left} ${right}`, rank);
    }
    this.#splitters = splitters(preTokenizer);
    this.#normalize = normalizer?.type === "NFC";
    this.#unwritable = unwritable ? new RegExp(`[${unwritable}]`, "gu") : null;
    this.#ignoreMerges = Boolean(model.ignore_merges);
    this.#bytesOf = new Map();
    for (const [token, id] of this.#vocab) {
      const bytes = Array.from(token, (symbol) => BYTES.get(symbol));
      this.#bytesOf.set(id, bytes.includes(undefined) ? this.#utf8.encode(token) : Uint8Array.from(bytes));
    }
    // Template text is searched for the longest control token first.
    const byLength = [...this.controls.keys()].sort((one, other) => other.length - one.length);
    const quoted = byLength.map((token) => token.replace(/[\\^$.*+?()[\]{}|/-]/g, String.raw`\$&`));
    this.controlPattern = quoted.length ? new RegExp(quoted.join("|"), "gu") : /(?!)/gu;
  }

  // The ids of a text.
  encode(text) {
    let whole = text.toWellFormed?.() ?? text.replace(/\p{Surrogate}/gu, "\ufffd");
    if (this.#unwritable) whole = whole.replace(this.#unwritable, "\ufffd");
    if (this.#normalize) whole = whole.normalize("NFC");
    let words = whole ? [whole] : [];
    for (const split of this.#splitters) words = words.flatMap(split);
    return words.flatMap((word) => this.#word(word));
  }

  // The bytes of text that an id stands for; none for control tokens.
  bytes(id) {
    return this.#bytesOf.get(id) ?? new Uint8Array();
  }

  #word(word) {
    const known = this.#cache.get(word);
    if (known) return known;
    const symbols = Array.from(this.#utf8.encode(word), (byte) => SYMBOLS[byte]);
    const whole = this.#ignoreMerges ? this.#vocab.get(symbols.join("")) : undefined;
    const ids = whole === undefined ? this.#merge(symbols).map((token) => this.#vocab.get(token)) : [whole];
    if (this.#cache.size >= CACHED_WORDS) this.#cache.clear();
    this.#cache.set(word, ids);
    return ids;
  }

  // Byte pair encoding: join the pair of the lowest rank, the leftmost of equals, until none is left.
  #merge(tokens) {
    const rankAt = (at) => this.#ranks.get(`${tokens[at]} ${tokens[at + 1]}`) ?? Infinity;
    const ranks = Array.from({ length: Math.max(tokens.length - 1, 0) }, (_, at) => rankAt(at));
    while (ranks.length) {
      let best = 0;
      for (let at = 1; at < ranks.length; at++) if (ranks[at] < ranks[best]) best = at;
      if (ranks[best] === Infinity) break;
      tokens.splice(best, 2, tokens[best] + tokens[best + 1]);
      ranks.splice(best, 1);
      if (best > 0) ranks[best - 1] = rankAt(best - 1);
      if (best < ranks.length) ranks[best] = rankAt(best);
    }
    return tokens;
  }
}

// Ids in one by one, whole characters out.
export class TextStream {
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(tokenizer) {
    this.tokenizer = tokenizer;
  }

  push(id) {
    return this.#decoder.decode(this.tokenizer.bytes(id), { stream: true });
  }

  flush() {
    return this.#decoder.decode();
  }
}
