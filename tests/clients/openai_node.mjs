// The official OpenAI client for Node against a running router. Prints one JSON object: the texts it got.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(process.env.NODE_CLIENTS + "/");
const OpenAI = require("openai");

const { BASE_URL, API_KEY, SLOW_URL, QUESTION } = process.env;
const common = { model: "demo", max_tokens: 60, temperature: 0.8, seed: 11 };
const messages = [{ role: "user", content: QUESTION }];
const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0, timeout: 60_000 });
const slow = new OpenAI({ baseURL: SLOW_URL, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const chat = (more = {}, options = {}) => client.chat.completions.create({ ...common, messages, ...more }, options);

const refused = async (kind, param, call) => {
  const error = await assert.rejects(call, kind).then(() => call().catch((error) => error));
  assert.equal(error.param ?? null, param, error.message);
  assert.equal(typeof error.type, "string");
  assert.ok(error.requestID);
};

const listed = await client.models.list();
assert.deepEqual(listed.data.map((model) => model.id), ["demo"]);

const { data: answer, response } = await chat({}, { headers: { "x-request-id": "label-2" } }).withResponse();
assert.equal(response.headers.get("x-request-id"), "label-2");
const text = answer.choices[0].message.content;
assert.equal(answer.choices[0].finish_reason, "stop");
assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
assert.ok(answer.metrics.speculative_decoding.num_spec_steps > 0);
assert.equal(answer.cascadia.seed, 11);

let streamed = "";
let usage;
const reasons = [];
for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
  if (chunk.choices.length === 0) usage = chunk.usage;
  else {
    streamed += chunk.choices[0].delta.content ?? "";
    reasons.push(chunk.choices[0].finish_reason);
  }
}
assert.equal(streamed, text);
assert.equal(reasons.pop(), "stop");
assert.ok(reasons.every((reason) => reason === null));
assert.equal(usage.completion_tokens, answer.usage.completion_tokens);

// The client's own accumulator, which is strict about the shape of chunks.
const final = await client.chat.completions.stream({ ...common, messages, n: 2, logprobs: true }).finalChatCompletion();
assert.equal(final.choices[0].message.content, text);
assert.equal(final.choices.length, 2);
const second = final.choices[1].message.content;

const older = await client.completions.create({ ...common, prompt: ["Mia has", "Tom has"], logprobs: 1 });
assert.deepEqual(older.choices.map((choice) => choice.index), [0, 1]);
assert.equal(older.choices[0].logprobs.tokens.length, older.choices[0].logprobs.token_logprobs.length);
const lossy = await chat({ model: "demo:token_v3@0.3", cascadia: { provenance: true } });
assert.equal(lossy.choices[0].cascadia.provenance.length, lossy.usage.completion_tokens);

await refused(OpenAI.BadRequestError, "tools", () => chat({ tools: [{ type: "function", function: { name: "f" } }] }));
await refused(OpenAI.BadRequestError, "top_q", () => chat({ top_q: 1 }));
await refused(OpenAI.NotFoundError, "model", () => chat({ model: "gpt-4" }));
const wrong = new OpenAI({ baseURL: BASE_URL, apiKey: "wrong", maxRetries: 0 });
await refused(OpenAI.AuthenticationError, null, () => wrong.models.list());

// One session fits: the next is told when to come again, and does.
const long = { model: "synthetic", messages, max_tokens: 3000 };
const occupant = await slow.chat.completions.create({ ...long, stream: true });
await occupant[Symbol.asyncIterator]().next();
await assert.rejects(slow.chat.completions.create(long), OpenAI.RateLimitError);
setTimeout(() => occupant.controller.abort(), 1500);
const short = { ...long, max_tokens: 3 };
const again = await slow.chat.completions.create(short, { maxRetries: 20 });
assert.equal(again.usage.completion_tokens, 3);
await assert.rejects(slow.chat.completions.create(long, { timeout: 1000 }), OpenAI.APIConnectionTimeoutError);
const controller = new AbortController();
setTimeout(() => controller.abort(), 1000);
const aborted = slow.chat.completions.create(long, { signal: controller.signal, maxRetries: 20 });
await assert.rejects(aborted, OpenAI.APIUserAbortError);

console.log(JSON.stringify({ text, second, fingerprint: answer.system_fingerprint }));
