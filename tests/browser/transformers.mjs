// An exported folder in transformers.js, from its own files alone. Arguments: node_modules, the folder. In (JSON):
// { prompts: [[id, ...]], messages, tokens }. Out: { written: greedy ids after each prompt, asked: the ids of the messages }.
import { createRequire } from "node:module";
import { basename, dirname } from "node:path";

const [, , modules, folder] = process.argv;
const { AutoModelForCausalLM, AutoTokenizer, Tensor, env } = createRequire(`${modules}/x.js`)("@huggingface/transformers");
Object.assign(env, { allowRemoteModels: false, localModelPath: `${dirname(folder)}/`, useFSCache: false });
let text = "";
for await (const piece of process.stdin) text += piece;
const { prompts, messages, tokens } = JSON.parse(text);
const tokenizer = await AutoTokenizer.from_pretrained(basename(folder));
const model = await AutoModelForCausalLM.from_pretrained(basename(folder)); // the dtype is that of config.json
const tensor = (ids) => new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
const generate = async (ids) => {
  const mask = tensor(ids.map(() => 1));
  const out = await model.generate({ input_ids: tensor(ids), attention_mask: mask, max_new_tokens: tokens, do_sample: false });
  return Array.from(out.data, Number).slice(ids.length);
};
const written = [];
for (const ids of prompts) written.push(await generate(ids));
const asked = tokenizer.apply_chat_template(messages, { add_generation_prompt: true, return_tensor: false, return_dict: false });
console.log(JSON.stringify({ written, asked: Array.from(asked, Number) }));
process.exit(0);
