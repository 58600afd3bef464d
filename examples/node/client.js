// Ask a running server from Node, with the .proto files alone:
//   cd examples/node && npm install && node client.js [HOST:PORT] [TEXT]
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const protos = fileURLToPath(new URL("../../proto", import.meta.url));
const options = { includeDirs: [protos], longs: Number, enums: String, defaults: true, oneofs: true };
const definition = loader.loadSync(["router/v1/inference.proto"], options);
const { InferenceService } = grpc.loadPackageDefinition(definition).router.v1;

const target = process.argv[2] ?? "127.0.0.1:50051";
const text = process.argv[3] ?? "Which ICD-10-CM chapter does Beard ringworm belong to?";
const client = new InferenceService(target, grpc.credentials.createInsecure());
const deadline = () => ({ deadline: Date.now() + 60_000 });
const request = { input: { text }, sampling: { maxTokens: 32 } };

const generate = () =>
  new Promise((resolve, reject) => {
    client.generate(request, new grpc.Metadata(), deadline(), (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });

const answer = await generate();
console.log(`[${answer.decision.adapter || "base"}] ${answer.text}`);

for await (const event of client.streamGenerate(request, new grpc.Metadata(), deadline())) {
  if (event.started) process.stdout.write(`[${event.started.decision.adapter || "base"}] `);
  if (event.delta) process.stdout.write(event.delta.text);
  if (event.finished) console.log(`\n${event.finished.reason}`);
}
client.close();
