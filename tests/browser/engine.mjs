// Runs the web export's engine outside a browser. Arguments: the engine's folder. In (JSON): what to compute.
import { pathToFileURL } from "node:url";

const load = (name) => import(pathToFileURL(`${process.argv[2]}/${name}.js`));
const [{ Tokenizer, TextStream }, { promptIds, ReplyStream }, { sample, uniform }] = await Promise.all(["tokenizer", "chat", "sampler"].map(load));
let text = "";
for await (const piece of process.stdin) text += piece;
const asked = JSON.parse(text);
const tokenizer = asked.definition && new Tokenizer(asked.definition, asked.controls, asked.unwritable);
const decode = (ids) => {
  const stream = new TextStream(tokenizer);
  return ids.map((id) => stream.push(id)).join("") + stream.flush();
};
const reply = (ids) => {
  const stream = new ReplyStream(tokenizer);
  const whole = { content: "", reasoning: "" };
  for (const delta of [...ids.map((id) => stream.push(id)), stream.flush()]) for (const [key, value] of Object.entries(delta)) whole[key] += value;
  return whole;
};
console.log(JSON.stringify({
  ids: asked.texts?.map((each) => tokenizer.encode(each)),
  decoded: asked.decode?.map(decode),
  prompts: asked.conversations?.map((each) => promptIds(tokenizer, asked.turns, each)),
  replies: asked.replies?.map(reply),
  uniform: asked.uniform?.map(([seed, position]) => uniform(seed, position)),
  samples: asked.samples?.map(({ logits, config, seen, position }) => sample(Float32Array.from(logits), config, seen, position)),
}));
