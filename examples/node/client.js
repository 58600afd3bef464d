// Ask a running server from Node, with the .proto files alone:
//   cd examples/node && npm install && node client.js [HOST:PORT] [TEXT]
// Where it speaks TLS and asks who calls:
//   node client.js --ca ca.pem --token TOKEN HOST:PORT
//   node client.js --ca ca.pem --cert client.pem --key client.key HOST:PORT
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const protos = fileURLToPath(new URL("../../proto", import.meta.url));
const options = { includeDirs: [protos], longs: Number, enums: String, defaults: true, oneofs: true };
const definition = loader.loadSync(["router/v1/inference.proto"], options);
const { InferenceService } = grpc.loadPackageDefinition(definition).router.v1;

const { values: flags, positionals } = parseArgs({
  options: { ca: { type: "string" }, cert: { type: "string" }, key: { type: "string" }, token: { type: "string" } },
  allowPositionals: true,
});
const target = positionals[0] ?? "127.0.0.1:50051";
const text = positionals[1] ?? "Which ICD-10-CM chapter does Beard ringworm belong to?";

function credentials() {
  if (!flags.ca) {
    if (flags.token || flags.cert || flags.key) throw new Error("--token, --cert and --key need --ca");
    return grpc.credentials.createInsecure();
  }
  const read = (path) => (path ? readFileSync(path) : null);
  const tls = grpc.credentials.createSsl(read(flags.ca), read(flags.key), read(flags.cert));
  if (!flags.token) return tls;
  const bearer = grpc.credentials.createFromMetadataGenerator((_, done) => {
    const metadata = new grpc.Metadata();
    metadata.set("authorization", `Bearer ${flags.token}`);
    done(null, metadata);
  });
  return grpc.credentials.combineChannelCredentials(tls, bearer);
}

const client = new InferenceService(target, credentials());
const deadline = () => ({ deadline: Date.now() + 60_000 });
const request = { input: { text }, sampling: { maxTokens: 32 } };

const generate = () =>
  new Promise((resolve, reject) => {
    client.generate(request, new grpc.Metadata(), deadline(), (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });

try {
  const answer = await generate();
  console.log(`[${answer.decision.adapter || "base"}] ${answer.text}`);

  for await (const event of client.streamGenerate(request, new grpc.Metadata(), deadline())) {
    if (event.started) process.stdout.write(`[${event.started.decision.adapter || "base"}] `);
    if (event.delta) process.stdout.write(event.delta.text);
    if (event.finished) console.log(`\n${event.finished.reason}`);
  }
} catch (error) {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
}
client.close();
