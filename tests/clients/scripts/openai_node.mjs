// The openai package for Node. Reads BLOCKC_URL and BLOCKC_KEY; ends with 0 if all is well.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { VERSION } from "openai/version";

const client = new OpenAI({ baseURL: `${process.env.BLOCKC_URL}/v1`, apiKey: process.env.BLOCKC_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const asked = { model: "berlin/chat", messages, max_tokens: 40, temperature: 0 };

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert(names.includes("berlin/chat"));

const whole = await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 2 });
const text = whole.choices[0].message.content;
assert.equal(whole.choices[0].logprobs.content[0].top_logprobs.length, 2);
let streamed = "", usage = null;
const options = { ...asked, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(options)) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
const helper = client.chat.completions.stream(asked);
assert.equal(await helper.finalContent(), text);

const schema = {
  type: "object",
  properties: { capital: { enum: ["Paris", "Rome"] }, size: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["capital", "size"],
  additionalProperties: false,
};
const shaped = await client.chat.completions.parse({
  model: "public/ask", messages, max_tokens: 100,
  response_format: { type: "json_schema", json_schema: { name: "city", schema, strict: true } },
});
assert(["Paris", "Rome"].includes(JSON.parse(shaped.choices[0].message.content).capital));

const tools = [{ type: "function", function: { name: "weather", parameters: schema } }];
const forced = await client.chat.completions.create({
  model: "clients/tools", messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 200, temperature: 0,
});
assert.equal(forced.choices[0].finish_reason, "tool_calls");
assert(JSON.parse(forced.choices[0].message.tool_calls[0].function.arguments).size >= 1);

const vectors = await client.embeddings.create({ model: "clients/find", input: ["one", "two"] });
const floats = await client.embeddings.create({ model: "clients/find", input: "one", encoding_format: "float" });
assert.equal(vectors.data.length, 2);
vectors.data[0].embedding.forEach((value, place) => assert(Math.abs(value - floats.data[0].embedding[place]) < 1e-5));

const words = await client.completions.create({ model: "public/ask", prompt: "The capital", max_tokens: 12 });
assert.equal(words.object, "text_completion");

const wrong = new OpenAI({ baseURL: `${process.env.BLOCKC_URL}/v1`, apiKey: "sk-wrong", maxRetries: 0 });
await assert.rejects(wrong.models.list(), OpenAI.AuthenticationError);
await assert.rejects(client.models.retrieve("x/y"), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ ...asked, temperature: 9 }), (error) => {
  return error instanceof OpenAI.BadRequestError && error.param === "temperature";
});
console.log("openai for node", VERSION);
