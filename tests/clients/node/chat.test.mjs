// Chat, streams, tools and embeddings through the official Node SDK.
import assert from "node:assert/strict";
import { test } from "node:test";
import { client, direct, facts, unique } from "./facts.mjs";

const messages = [{ role: "user", content: "Hello world" }];
const greedy = { temperature: 0, seed: 7, max_tokens: 12 };
const weather = {
  type: "function",
  function: { name: "weather", parameters: { type: "object", properties: { query: { type: "string" } } } },
};

test("chat equals the direct answer", async () => {
  const call = { model: "qwen3-30b-a3b", messages, ...greedy };
  const through = await (await client()).chat.completions.create(call);
  const around = await direct("llama").chat.completions.create(call);
  assert.deepEqual(through.choices, around.choices);
  assert.deepEqual(through.usage, around.usage);
});

test("a stream arrives piece by piece", async () => {
  const user = unique();
  const stream = await (await client()).chat.completions.create({
    model: "fake-gated",
    messages: [{ role: "user", content: "one two" }],
    stream: true,
    user,
  });
  const chunks = [];
  for await (const chunk of stream) {
    // The rest does not exist before the first piece is here.
    if (chunks.length === 0) await fetch(`${facts.fake}/__release/${user}`, { method: "POST" });
    chunks.push(chunk);
  }
  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), "You said: one two");
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  assert.ok(chunks.every((chunk) => !chunk.usage), "nobody asked for usage");
});

test("usage comes last when asked", async () => {
  const stream = await (await client()).chat.completions.create({
    model: "qwen3-30b-a3b",
    messages,
    stream: true,
    stream_options: { include_usage: true },
    ...greedy,
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  assert.ok(chunks.at(-1).usage.completion_tokens > 0);
  assert.ok(chunks.slice(0, -1).every((chunk) => !chunk.usage));
});

test("tools are called, whole and streamed", async () => {
  const call = { model: "fake-chat", messages, tools: [weather] };
  const sdk = await client();
  const answer = await sdk.chat.completions.create(call);
  assert.equal(answer.choices[0].message.tool_calls[0].function.name, "weather");
  const final = await sdk.chat.completions.stream(call).finalChatCompletion();
  const streamed = final.choices[0].message.tool_calls[0].function;
  assert.deepEqual(JSON.parse(streamed.arguments), { query: "Hello world" });
});

test("completions", async () => {
  const answer = await (await client()).completions.create({ model: "gpt-4", prompt: "hello", ...greedy });
  assert.equal(answer.object, "text_completion");
});

test("embeddings equal the direct ones", async () => {
  const call = { model: "tiny-embedding", input: ["hello", "world"], encoding_format: "float" };
  const through = await (await client()).embeddings.create(call);
  const around = await direct("embedder").embeddings.create(call);
  assert.deepEqual(through.data, around.data);
  assert.equal(through.data.length, 2);
});

test("responses stream", async () => {
  const stream = await (await client()).responses.create({ model: "responder", input: "hi", stream: true });
  const types = [];
  for await (const event of stream) types.push(event.type);
  assert.equal(types[0], "response.created");
  assert.equal(types.at(-1), "response.completed");
});

test("models", async () => {
  const ids = [];
  for await (const model of (await client()).models.list()) ids.push(model.id);
  assert.ok(ids.includes("gpt-4") && ids.includes("tts-1"));
});
