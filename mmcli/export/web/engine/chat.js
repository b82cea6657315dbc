// Messages to the ids of a prompt, and the ids of a reply to text and reasoning.

import { TextStream } from "./tokenizer.js";

// The ids of a conversation: messages are [system], then user and assistant in turn, a user's last.
// turns: the template's text around messages (mmcli/export/web/turns.py). Control tokens come from it alone; all that
// stands between two of them is encoded in one call.
export function promptIds(tokenizer, turns, messages) {
  const ids = [];
  let pending = "";
  const flush = () => {
    ids.push(...tokenizer.encode(pending));
    pending = "";
  };
  const literal = (text) => {
    let end = 0;
    for (const match of text.matchAll(tokenizer.controlPattern)) {
      pending += text.slice(end, match.index);
      flush();
      ids.push(tokenizer.controls.get(match[0]));
      end = match.index + match[0].length;
    }
    pending += text.slice(end);
  };
  const [first, ...others] = messages;
  if (first.role === "system") {
    if (!turns.system) throw new RangeError("no system");
    literal(turns.system[0]);
    pending += first.content;
    literal(turns.system[1]);
  } else literal(turns.opening);
  for (const [at, message] of (first.role === "system" ? others : messages).entries()) {
    if (message.role !== (at % 2 ? "assistant" : "user")) throw new TypeError(`message ${at} is the ${message.role}'s`);
    if (message.role === "assistant") {
      literal(turns.reply);
      flush(); // the ids of a prompt are a prefix of those of its continuation
      if (message.reasoning_content && turns.reasoning) {
        literal(turns.reasoning[0]);
        pending += message.reasoning_content;
        literal(turns.reasoning[1]);
      }
      pending += message.content;
      literal(turns.turn);
    } else pending += message.content;
  }
  literal(turns.prompt);
  flush();
  return ids;
}

// The ids of a reply, one by one, to { content } or { reasoning }. Marks count only as control tokens; line breaks behind
// them, which the chat template writes itself, are taken off.
export class ReplyStream {
  #shown = new Map();
  #isFirst = true;
  #isAfterMark;
  #stream;

  constructor(tokenizer, isThinking = false) {
    this.isThinking = isThinking; // the prompt may open the reasoning
    this.#isAfterMark = isThinking;
    this.#stream = new TextStream(tokenizer);
    for (const mark of ["<think>", "</think>", "<tool_call>", "</tool_call>"]) {
      if (tokenizer.controls.has(mark)) this.#shown.set(tokenizer.controls.get(mark), mark);
    }
  }

  push(id) {
    const mark = this.#shown.get(id);
    const opens = mark === "<think>" && this.#isFirst;
    this.#isFirst = false;
    if (mark === undefined) return this.#delta(this.#stream.push(id));
    const before = this.#stream.flush();
    if (!opens && !(mark === "</think>" && this.isThinking)) return this.#delta(before + mark);
    const delta = this.#delta(before);
    this.isThinking = opens;
    this.#isAfterMark = true;
    return delta;
  }

  flush() {
    return this.#delta(this.#stream.flush());
  }

  #delta(text) {
    const shown = this.#isAfterMark ? text.replace(/^\n+/, "") : text;
    if (shown) this.#isAfterMark = false;
    return this.isThinking ? { reasoning: shown } : { content: shown };
  }
}
