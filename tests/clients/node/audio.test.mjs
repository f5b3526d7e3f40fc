// Speech and recognition through the official Node SDK, byte for byte.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { toFile } from "openai";
import { client, direct } from "./facts.mjs";

const speech = { model: "tts-1", voice: "alloy", input: "one two three", speed: 0.8 };
const bytes = async (answer) => Buffer.from(await (await answer).arrayBuffer());
const sha256 = (data) => createHash("sha256").update(data).digest("hex");
const sound = async (kind = "wav") =>
  toFile(await bytes(direct("audio").audio.speech.create({ ...speech, response_format: kind })), `speech.${kind}`);

for (const kind of ["mp3", "wav", "opus"]) {
  test(`speech as ${kind} is byte exact`, async () => {
    const call = { ...speech, response_format: kind };
    const through = await bytes((await client()).audio.speech.create(call));
    assert.equal(sha256(through), sha256(await bytes(direct("audio").audio.speech.create(call))));
  });
}

test("what was spoken is heard", async () => {
  const answer = await (await client()).audio.transcriptions.create({ model: "whisper-1", file: await sound() });
  assert.equal(answer.text, "one two three");
});

for (const kind of ["json", "text", "srt", "verbose_json", "vtt"]) {
  test(`transcription as ${kind} equals the direct one`, async () => {
    const call = async () => ({
      model: "whisper-large-v3",
      file: await sound("mp3"),
      response_format: kind,
      ...(kind === "verbose_json" && { timestamp_granularities: ["word", "segment"] }),
    });
    const through = await (await client()).audio.transcriptions.create(await call());
    assert.deepEqual(through, await direct("audio").audio.transcriptions.create(await call()));
  });
}

test("translation", async () => {
  const call = { model: "whisper-large-v3", file: await sound() };
  assert.equal((await (await client()).audio.translations.create(call)).text, "one two three");
});
