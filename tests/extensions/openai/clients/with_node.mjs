// OpenAI's client for Node: `node with_node.mjs URL`, where the package is; prints what it saw as JSON.

import { readFileSync } from "node:fs";
import OpenAI, { NotFoundError } from "openai";

const text = "a medical question";
const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: text }];
const { version } = JSON.parse(readFileSync("node_modules/openai/package.json", "utf8"));
const seen = { version: `openai ${version}, Node ${process.version}` };
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const asked = { model: "auto", messages, max_completion_tokens: 40, user: "anna" };

const { data: whole, response } = await client.chat.completions.create(asked).withResponse();
seen.whole = whole.choices[0].message.content;
seen.model = whole.model;
seen.id = whole.id;
seen.adapter = response.headers.get("x-router-adapter");
seen.routing = whole.routing.adapter;
seen.tokens = whole.usage.total_tokens;

const stream = await client.chat.completions.create({ ...asked, stream: true });
seen.streamed = "";
for await (const chunk of stream) {
  seen.streamed += chunk.choices[0]?.delta.content ?? "";
  seen.streamed_model = chunk.model;
  seen.streamed_adapter ??= chunk.routing?.adapter;
}
seen.models = [];
for await (const model of client.models.list()) seen.models.push(model.id);
seen.plain = (await client.completions.create({ model: "medical", prompt: text })).choices[0].text;

const asking = { model: "auto", instructions: "Be brief.", input: text };
const { output_text, model } = await client.responses.create(asking);
seen.response = [output_text, model];
seen.response_streamed = "";
for await (const event of await client.responses.create({ ...asking, stream: true })) {
  if (event.type === "response.output_text.delta") seen.response_streamed += event.delta;
}

try {
  await client.chat.completions.create({ ...asked, model: "nobody" });
} catch (error) {
  if (!(error instanceof NotFoundError)) throw error;
  seen.unknown = [error.constructor.name, error.code];
}
console.log(JSON.stringify(seen));
