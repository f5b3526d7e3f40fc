// What every Node test starts from: the running stack's facts and a key of its own.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import OpenAI from "openai";

if (!process.env.CLIENTS_FACTS) {
  throw new Error("CLIENTS_FACTS must name the facts of a running stack (tests/clients/run.sh starts one)");
}
export const facts = JSON.parse(readFileSync(process.env.CLIENTS_FACTS, "utf8"));

/** A name that no other test or run uses. */
export const unique = () => `n-${randomUUID()}`;

/** Makes a virtual key from the fields given. */
export async function newKey(fields) {
  const answer = await fetch(`${facts.base}/key/generate`, {
    method: "POST",
    headers: { authorization: `Bearer ${facts.master_key}`, "content-type": "application/json" },
    body: JSON.stringify(fields),
  });
  if (answer.status !== 200) throw new Error(await answer.text());
  return (await answer.json()).key;
}

/** The SDK on the gateway, without retries of its own. */
export async function client(options = {}) {
  const apiKey = options.apiKey ?? (await newKey({ models: [], user_id: unique() }));
  return new OpenAI({ baseURL: `${facts.base}/v1`, maxRetries: 0, timeout: 60_000, ...options, apiKey });
}

/** The SDK on an upstream itself, around the gateway. */
export function direct(upstream) {
  return new OpenAI({ baseURL: `${facts[upstream]}/v1`, apiKey: "unused", maxRetries: 0 });
}
