// The official Node SDK over HTTPS, with the authority for the local network as `tollkeeper tls ca` gives
// it. Each test runs over HTTP/1.1 and over HTTP/2 (undici's `allowH2`).
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { subscribe } from "node:diagnostics_channel";
import { readFileSync } from "node:fs";
import { after, test } from "node:test";
import { promisify } from "node:util";
import OpenAI from "openai";
import { Agent, fetch } from "undici";
import { client, facts, newKey, unique } from "./facts.mjs";

const messages = [{ role: "user", content: "Hello world" }];
const ca = readFileSync(facts.ca, "utf8");
// What was agreed on, for each connection with TLS that was opened.
const agreed = [];
subscribe("undici:client:connected", ({ socket }) => {
  if (socket.encrypted) agreed.push(socket.alpnProtocol);
});

for (const [spoken, alpn] of [["HTTP/1.1", "http/1.1"], ["HTTP/2", "h2"]]) {
  const dispatcher = new Agent({ allowH2: alpn === "h2", connect: { ca } });
  after(() => dispatcher.destroy());
  const secure = (options = {}) =>
    client({ baseURL: `${facts.https}/v1`, fetch, fetchOptions: { dispatcher }, ...options });

  test(`chat over ${spoken}`, async () => {
    agreed.length = 0;
    const answer = await (await secure()).chat.completions.create({ model: "fake-chat", messages });
    assert.equal(answer.choices[0].message.content, "You said: Hello world");
    assert.deepEqual([...new Set(agreed)], [alpn]);
  });

  test(`a stream over ${spoken} arrives piece by piece`, async () => {
    const user = unique();
    const sdk = await secure();
    const stream = await sdk.chat.completions.create({ model: "fake-gated", messages, stream: true, user });
    let text = "";
    for await (const chunk of stream) {
      // The rest does not exist before the first piece is here.
      if (!text) await fetch(`${facts.fake}/__release/${user}`, { method: "POST" });
      text += chunk.choices[0].delta.content ?? "";
    }
    assert.equal(text, "You said: Hello world");
  });

  test(`twenty streams side by side over ${spoken}: none ends before all have begun`, async () => {
    const sdk = await secure();
    const names = Array.from({ length: 20 }, unique);
    let begun = 0;
    const one = async (user) => {
      const content = `this is ${user}`;
      const stream = await sdk.chat.completions.create({
        model: "fake-gated",
        messages: [{ role: "user", content }],
        stream: true,
        user,
      });
      let text = "";
      for await (const chunk of stream) {
        if (!text && ++begun === names.length) {
          for (const name of names) await fetch(`${facts.fake}/__release/${name}`, { method: "POST" });
        }
        text += chunk.choices[0].delta.content ?? "";
      }
      assert.equal(text, `You said: ${content}`);
    };
    await Promise.all(names.map(one));
  });

  test(`models and embeddings over ${spoken}`, async () => {
    const sdk = await secure();
    const ids = [];
    for await (const model of sdk.models.list()) ids.push(model.id);
    assert.ok(ids.includes("gpt-4") && ids.includes("tts-1"));
    const answer = await sdk.embeddings.create({ model: "fake-embedding", input: ["hello", "world"] });
    assert.deepEqual(answer.data.map((one) => one.embedding), [[5, 0.25, -0.5, 1], [5, 0.25, -0.5, 1]]);
  });

  test(`errors over ${spoken}`, async () => {
    const wrong = await secure({ apiKey: "sk-nobody-ever-made-this-one" });
    await assert.rejects(wrong.models.list(), OpenAI.AuthenticationError);
    const sdk = await secure();
    const call = (model) => sdk.chat.completions.create({ model, messages });
    await assert.rejects(call("fake-status-400"), OpenAI.BadRequestError);
    await assert.rejects(call("fake-status-429"), OpenAI.RateLimitError);
    assert.ok((await sdk.models.list()).data.length > 0);
  });
}

test("who does not trust the authority gets nowhere", async () => {
  const sdk = await client({ baseURL: `${facts.https}/v1` });
  await assert.rejects(sdk.models.list(), OpenAI.APIConnectionError);
});

test("the way that `tls ca` tells: NODE_EXTRA_CA_CERTS", async () => {
  const script = `import OpenAI from "openai";
    console.log((await new OpenAI({ maxRetries: 0 }).models.list()).data.length);`;
  const env = {
    ...process.env,
    NODE_EXTRA_CA_CERTS: facts.ca,
    OPENAI_BASE_URL: `${facts.https}/v1`,
    OPENAI_API_KEY: await newKey({ models: [] }),
  };
  // A child of the test runner would report to it instead of printing.
  delete env.NODE_TEST_CONTEXT;
  const run = ["--input-type=module", "-e", script];
  const { stdout } = await promisify(execFile)(process.execPath, run, { env, cwd: import.meta.dirname, timeout: 60_000 });
  assert.ok(Number(stdout) > 5, stdout);
});
