// node client.mjs ADDRESS OPENAI: what the openai client for JavaScript gets from a server, as JSON.
import { pathToFileURL } from "node:url";

const [address, folder] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(`${folder}/index.mjs`));
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const greedy = { model: "random", messages, max_tokens: 20, temperature: 0, repetition_penalty: 1 };
const found = {};

found.models = (await client.models.list()).data.map((each) => each.id);
const reply = await client.chat.completions.create({ ...greedy, logprobs: true, top_logprobs: 2 });
found.reply = reply.choices[0].message.content;
found.logprobs = reply.choices[0].logprobs.content.length;

found.stream = "";
for await (const chunk of await client.chat.completions.create({ ...greedy, stream: true }))
  found.stream += chunk.choices[0]?.delta?.content ?? "";
const runner = client.chat.completions.stream(greedy);
found.helper = (await runner.finalChatCompletion()).choices[0].message.content;

const parameters = { type: "object", properties: { a: { enum: [1, 2] } }, required: ["a"], additionalProperties: false };
const tools = [{ type: "function", function: { name: "add", parameters } }];
const called = await client.chat.completions.create({ ...greedy, max_tokens: 60, tools, tool_choice: "required" });
found.call = called.choices[0].message.tool_calls[0].function;

const form = { type: "json_schema", json_schema: { name: "n", schema: parameters, strict: true } };
const json = await client.chat.completions.create({ ...greedy, max_tokens: 60, response_format: form });
found.json = JSON.parse(json.choices[0].message.content);

const asked = { model: "random", input: "Hello", max_output_tokens: 20, temperature: 0, repetition_penalty: 1 };
found.response = (await client.responses.create(asked)).output_text;
found.responses = "";
for await (const event of await client.responses.create({ ...asked, stream: true }))
  if (event.type === "response.output_text.delta") found.responses += event.delta;

found.errors = [];
for (const change of [{ model: "gpt-9" }, { temperature: -1 }, { frobnicate: 1 }])
  try {
    await client.chat.completions.create({ ...greedy, ...change });
  } catch (error) {
    found.errors.push([error.status, error.constructor.name, error.param]);
  }

const endless = await client.chat.completions.create({ model: "written", messages, stream: true });
for await (const _ of endless) endless.controller.abort();
found.aborted = true;
console.log(JSON.stringify(found));
