// @saintno/comfyui-sdk: takes the sid of the first status for its id, and finds its job in its own port's queue or history.
import { readFileSync, writeFileSync } from "node:fs";
import { ComfyApi, CallWrapper, PromptBuilder } from "@saintno/comfyui-sdk";

const [host, seed, jobs, folder] = process.argv.slice(2);
const api = await new ComfyApi(`http://${host}`).init().waitForReady();
let progress = 0;
for (let number = +seed; number < +seed + +jobs; number++) {
  const prompt = JSON.parse(readFileSync(`${folder}/${number}.json`));
  const workflow = new PromptBuilder(prompt, [], ["images"]).setOutputNode("images", "3");
  const result = await new Promise((resolve, reject) =>
    new CallWrapper(api, workflow)
      .onProgress(() => progress++)
      .onFinished(resolve)
      .onFailed(reject)
      .run());
  const answer = await fetch(api.getPathImage(result.images.images[0]));
  writeFileSync(`${folder}/${number}.png`, Buffer.from(await answer.arrayBuffer()));
}
console.log(JSON.stringify({ progress }));
process.exit(0);
