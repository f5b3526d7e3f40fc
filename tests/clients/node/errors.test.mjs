// Refusals and failures as the Node SDK's exception classes.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { client, facts, newKey, unique } from "./facts.mjs";

const messages = [{ role: "user", content: "Hello world" }];
const chat = (sdk, model = "fake-chat", more = {}) => sdk.chat.completions.create({ model, messages, ...more });

async function refused(promise, kind, status) {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof kind, `${error}`);
    assert.equal(error.status, status);
    assert.ok(error.requestID, "a request id to report");
    assert.ok(error.error.message.length > 10);
    return true;
  });
}

test("an unknown key", async () => {
  const sdk = await client({ apiKey: "sk-nobody-ever-made-this-one" });
  await refused(chat(sdk), OpenAI.AuthenticationError, 401);
});

test("a model that is not allowed", async () => {
  const sdk = await client({ apiKey: await newKey({ models: ["gpt-4"] }) });
  await refused(chat(sdk), OpenAI.PermissionDeniedError, 403);
});

test("a model that nobody has", async () => {
  const sdk = await client({ baseURL: `${facts.strict}/v1`, apiKey: facts.master_key });
  await refused(chat(sdk, "no-such-model"), OpenAI.NotFoundError, 404);
});

test("a body without messages", async () => {
  await refused(chat(await client(), "fake-chat", { messages: undefined }), OpenAI.BadRequestError, 400);
});

test("retries get through", async () => {
  const answer = await chat(await client({ maxRetries: 2 }), "fake-flaky", { user: unique() });
  assert.equal(answer.choices[0].message.content, "You said: Hello world");
});

test("without retries a 429 is a rate limit error", async () => {
  await refused(chat(await client(), "fake-flaky", { user: unique() }), OpenAI.RateLimitError, 429);
});

test("the caller's patience ends", async () => {
  const sdk = await client({ timeout: 500 });
  await assert.rejects(chat(sdk, "fake-slow", { user: unique() }), OpenAI.APIConnectionTimeoutError);
});

test("a stream cut by the upstream is an error", async () => {
  const stream = await chat(await client(), "fake-drop", { stream: true });
  const reasons = [];
  await assert.rejects(async () => {
    for await (const chunk of stream) reasons.push(chunk.choices[0].finish_reason);
  });
  assert.deepEqual(reasons, [null, null]);
});
