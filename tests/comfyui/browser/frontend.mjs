// Drives ComfyUI's real web frontend in headless Chromium and says what happened, as JSON lines on stdout.
//
// usage: node frontend.mjs BASE_URL WORKFLOW.json STEP…     steps: load queue save=NAME open=NAME wait_restart
//
// Between steps it prints {"step", …facts}; "wait_restart" prints {"step": "ready_for_restart"} first, and waits for the
// socket to close and to be opened again by the frontend itself. What is right is judged by test_frontend.py.
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const [base, workflowFile, ...steps] = process.argv.slice(2);
const workflow = JSON.parse(readFileSync(workflowFile));
const host = new URL(base).host;
const say = (step, facts) => console.log(JSON.stringify({ step, ...facts }));

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
});
const page = await (await browser.newContext({ viewport: { width: 1400, height: 900 } })).newPage();
const seen = { requests: 0, failed: [], kinds: {}, sockets: 0, closed: 0, errors: [], external: 0, views: [] };
const frames = [];

// Nothing outside this machine takes part: the frontend lives without its news and registry.
await page.route((url) => url.host !== host, (route) => { seen.external++; return route.abort(); });
const ours = (url) => new URL(url).host === host;
page.on("request", (request) => { if (ours(request.url())) seen.requests++; });
page.on("response", (response) => {
  if (!ours(response.url())) return;
  const path = new URL(response.url()).pathname;
  seen.kinds[response.status()] = (seen.kinds[response.status()] || 0) + 1;
  if (response.status() >= 400) seen.failed.push(`${response.status()} ${path}`);
  if (path.endsWith("/view")) seen.views.push(response.status());
});
page.on("requestfailed", (request) => {
  if (ours(request.url())) seen.failed.push(`${request.failure()?.errorText} ${new URL(request.url()).pathname}`);
});
page.on("pageerror", (error) => seen.errors.push(String(error).slice(0, 300)));
page.on("websocket", (socket) => {
  seen.sockets++;
  socket.on("close", () => seen.closed++);
  socket.on("framereceived", ({ payload }) => {
    if (typeof payload === "string") { const message = JSON.parse(payload); frames.push([message.type, message.data]); }
    else frames.push(["binary", {}]);
  });
});
const until = async (what, holds, seconds = 90) => {
  const end = Date.now() + 1000 * seconds;
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`waited ${seconds} s for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
};
const gpus = new Set();
page.on("response", async (response) => {
  if (response.request().method() === "POST" && response.url().endsWith("/prompt"))
    gpus.add((await response.json().catch(() => ({}))).gpu_id);
});
const count = (kind) => frames.filter(([type]) => type === kind).length;

async function undisturbed() {
  const dialog = page.locator('[role="dialog"]:visible');
  await until("no dialog to be open", async () => {
    if (!await dialog.count()) return true;
    await page.keyboard.press("Escape");
    // Not every one goes by the key: the templates of a first visit have a cross, and go when it is taken.
    await dialog.last().locator("button:has(.pi-times)").first().click({ timeout: 1000 }).catch(() => {});
    return false;
  });
}

const act = {
  async load() {
    await page.goto(base, { waitUntil: "load" });
    await until("the application", () => page.evaluate(() => !!window.app?.graph && !!window.app?.extensionManager));
    await until("its socket", () => count("status") > 0);
    await page.waitForLoadState("networkidle");
    await undisturbed();
    return { title: await page.title(), canvas: await page.locator("canvas").count() };
  },
  async queue() {
    const before = { success: count("execution_success"), views: seen.views.length };
    await page.evaluate((prompt) => {
      for (const node of Object.values(prompt)) if ("seed" in node.inputs) node.inputs.seed = Math.floor(Math.random() * 1e9);
      window.app.loadApiJson(prompt, "proof");
      window.__titles = [];
      clearInterval(window.__watch);
      window.__watch = setInterval(() => window.__titles.push(document.title), 20);
    }, workflow);
    const button = page.locator('[data-testid="queue-button"] button, button:has-text("Run")').first();
    const clicked = await button.click({ timeout: 4000 }).then(() => true, () => false);
    if (!clicked) await page.evaluate(() => window.app.queuePrompt(0));
    await until("the job's end", () => count("execution_success") > before.success);
    await until("its picture", () => page.evaluate(() => window.app.graph._nodes.some(
      (node) => node.type === "SaveImage" && node.imgs?.some((image) => image.naturalWidth > 0))));
    const titles = await page.evaluate(() => [...new Set(window.__titles)]);
    return { gpus: [...gpus], clicked, progress: count("progress"), previews: count("binary"), titles: titles.slice(0, 20),
             views: seen.views.slice(before.views), shown: titles.some((title) => /\d+%/.test(title)) };
  },
  async save(name) {
    const answered = page.waitForResponse((response) => response.request().method() === "POST" &&
      response.url().includes("/userdata/"), { timeout: 20000 });
    answered.catch(() => {});  // told below
    await undisturbed();
    await page.mouse.click(700, 650);  // the canvas takes the keys
    await page.keyboard.press("Control+s");
    await until("the name's field", () => page.evaluate(() => document.activeElement?.matches("input, [type=text]")));
    await page.keyboard.press("Control+a");
    await page.keyboard.type(name);
    await page.keyboard.press("Enter");
    const response = await answered;
    return { status: response.status(), path: response.url().slice(response.url().indexOf("/", 8)) };
  },
  async open(name) {
    const wanted = `workflows/${name}.json`;
    const opened = await page.evaluate(async (path) => {
      const store = window.app.extensionManager.workflow;
      await store.syncWorkflows?.();
      const found = store.getWorkflowByPath(path);
      if (!found) return { known: store.workflows.map((one) => one.path) };
      await found.load({ force: true });
      return { nodes: found.activeState?.nodes?.length ?? JSON.parse(found.content).nodes.length };
    }, wanted);
    return opened;
  },
  async wait_restart() {
    const { sockets, closed } = seen;
    const states = count("status");
    say("ready_for_restart", {});
    await until("the socket to close", () => seen.closed > closed, 60);
    await until("a new socket", () => seen.sockets > sockets && count("status") > states, 120);
    return { sockets: seen.sockets };
  },
};

try {
  for (const step of steps) {
    const [name, value] = step.split("=");
    say(name, await act[name](value));
  }
  say("end", seen);
} catch (error) {
  if (process.env.SHOT) await page.screenshot({ path: process.env.SHOT });
  say("error", { message: String(error).slice(0, 800), seen });
  process.exitCode = 1;
} finally {
  await browser.close();
}
