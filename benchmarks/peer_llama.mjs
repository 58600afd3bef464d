// llama.cpp as a contestant of a benchmark, by node-llama-cpp: a line in, a round, a line out.
//
// Started as `node peer_llama.mjs PACKAGES MODEL.gguf REQUESTS TOKENS THREADS`. PACKAGES: its node_modules; TOKENS: of
// the longest request that comes alone; of REQUESTS at once each has up to 512. In: {"prompts": [...], "new": N}; out: {"seconds": ..., "tokens": ...}.
import {readFileSync} from "node:fs";
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const [packages, file, requests, tokens, threads] = process.argv.slice(2);
const library = `${packages}/node-llama-cpp`;
const {getLlama} = await import(pathToFileURL(`${library}/dist/index.js`));
const llama = await getLlama({
  gpu: false,
  build: "never",
  skipDownload: true,
  maxThreads: Number(threads),
  logger: (level, message) => process.stderr.write(`${level}: ${message}\n`),
});
const model = await llama.loadModel({modelPath: file});
let context, sequences, kind;

// Sequences for that many requests. One context at a time: two take the cores from each other.
async function sequencesFor(count) {
  const wanted = count === 1 ? "alone" : "many";
  if (kind !== wanted) {
    await context?.dispose();
    context = await model.createContext({
      sequences: count === 1 ? 1 : Number(requests),
      contextSize: count === 1 ? Number(tokens) : 512,
      batchSize: 512,
      threads: {ideal: Number(threads), min: Number(threads)},
    });
    sequences = Array.from({length: count === 1 ? 1 : Number(requests)}, () => context.getSequence());
    kind = wanted;
  }
  return sequences.slice(0, count);
}

async function answer(sequence, prompt, count) {
  let found = 0;
  for await (const _ of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) if (++found === count) break;
  return found;
}

const version = JSON.parse(readFileSync(`${library}/package.json`)).version;
const release = llama.llamaCppRelease?.release ?? "";
const about = {
  process: process.pid,
  threads: Number(threads),
  settings: {},
  libraries: {"node-llama-cpp": version, "llama.cpp": release},
};
process.stdout.write(JSON.stringify(about) + "\n");
for await (const line of createInterface({input: process.stdin})) {
  const work = JSON.parse(line);
  const rows = await sequencesFor(work.prompts.length);
  await Promise.all(rows.map((sequence) => sequence.clearHistory()));
  const begin = performance.now();
  const counts = await Promise.all(work.prompts.map((prompt, i) => answer(rows[i], prompt, work.new)));
  const seconds = (performance.now() - begin) / 1000;
  process.stdout.write(JSON.stringify({seconds, tokens: counts.reduce((a, b) => a + b, 0)}) + "\n");
}
process.exit(0);
