// @stable-canvas/comfyui-client: one socket, `enqueue` waits for its own job's events.
import { readFileSync, writeFileSync } from "node:fs";
import { Client } from "@stable-canvas/comfyui-client";
import WebSocket from "ws";

const [host, seed, jobs, folder] = process.argv.slice(2);
const client = new Client({ api_host: host, WebSocket, fetch });
await client.connect();
let progress = 0;
for (let number = +seed; number < +seed + +jobs; number++) {
  const prompt = JSON.parse(readFileSync(`${folder}/${number}.json`));
  const result = await client.enqueue(prompt, { disable_random_seed: true, progress: () => progress++ });
  const image = result.images[0];
  const bytes = image.type === "buff" ? Buffer.from(image.data) : Buffer.from(await (await fetch(image.data)).arrayBuffer());
  writeFileSync(`${folder}/${number}.png`, bytes);
}
console.log(JSON.stringify({ progress }));
process.exit(0);
