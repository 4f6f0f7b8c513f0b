// The stream, and who draws what of it. The gateway sends everything at connect and then only what has changed.

import { ask, button, make, mark, show, write } from "./dom.js";
import { clearGpus, drawGpus, drawWork } from "./gpus.js";
import { clearJobs, drawJobs, tick, watchFilter } from "./jobs.js";
import { clearLogs, drawLog } from "./logs.js";

const ranks = ["read", "submit", "admin"];
const patience = 2500; // milliseconds without a stream before it is worth a word
const again = 3000; // milliseconds until the next try after a refusal

const context = {
  jobs: new Map(),
  gateway: null,
  scope: "read",
  most: 0,
  ahead: 0, // seconds that the gateway's clock is ahead of ours
  now: () => Date.now() / 1000 + context.ahead,
  may: (scope) => ranks.indexOf(context.scope) >= ranks.indexOf(scope),
};

const pause = button("Pause queue", async () => {
  const said = await ask("POST", `admin/line/${context.gateway.line.paused ? "resume" : "pause"}`);
  return said.paused ? "New jobs of the front door wait; what is on a GPU goes on." : "Jobs that wait go to the GPUs again.";
});
document.getElementById("line").append(pause);
show(pause, false);

const status = document.getElementById("stream");
const notice = document.getElementById("notice");
let lost = 0;
let heard = null;

function connect() {
  const source = new EventSource("dashboard/events");
  source.addEventListener("state", (event) => { arrived(); begin(JSON.parse(event.data)); });
  source.addEventListener("change", (event) => { arrived(); change(JSON.parse(event.data)); });
  source.addEventListener("log", (event) => drawLog(JSON.parse(event.data), context.gateway.backends));
  source.addEventListener("error", () => {
    if (!lost) lost = setTimeout(gone, patience);
    if (source.readyState !== EventSource.CLOSED) return; // the browser comes back by itself
    source.close();
    refused();
    setTimeout(connect, again);
  });
}

function arrived() {
  heard = new Date();
  clearTimeout(lost);
  lost = 0;
  write(status, "Live");
  document.body.dataset.stream = "live";
  show(notice, false);
}

function gone() {
  const since = heard ? ` What you see is from ${heard.toLocaleTimeString()}.` : "";
  document.body.dataset.stream = "lost";
  write(status, "Reconnecting …");
  tell("warn", `The connection to the gateway is lost; trying again.${since} If this goes on, see whether comfy-gateway up still runs.`);
}

// The stream was answered with an error: say which, and what to do.
async function refused() {
  try {
    const answer = await fetch("dashboard/events", { method: "HEAD" });
    if (answer.status === 401 || answer.status === 403) {
      tell("bad", "You are not logged in any more, or your key may not look. ",
        make("a", { href: `gateway/login?next=${encodeURIComponent(location.pathname)}` }, "Log in"));
    }
  } catch {
    return; // it does not answer at all, which is said already
  }
}

function tell(kind, ...words) {
  notice.dataset.kind = kind;
  notice.replaceChildren(...words);
  show(notice, true);
}

function begin(told) {
  context.scope = told.you.scope;
  context.most = told.most_jobs;
  context.ahead = told.now - Date.now() / 1000;
  const known = new Set(told.jobs.map((job) => job.id));
  if (context.gateway && context.gateway.backends.length !== told.gateway.backends.length) {
    clearGpus();
    clearJobs();
  }
  clearLogs();
  change({ ...told, gone: [...context.jobs.keys()].filter((id) => !known.has(id)) });
}

function change({ gateway, gpus = [], jobs = [], gone: left = [] }) {
  for (const id of left) context.jobs.delete(id);
  for (const job of jobs) context.jobs.set(job.id, job);
  if (gateway) drawGateway(gateway);
  drawGpus(gpus, context);
  drawWork(new Map(jobs.map((job) => [job.id, job])), context);
  drawJobs(jobs, left, context);
}

function drawGateway(gateway) {
  context.gateway = gateway;
  const health = document.getElementById("health");
  mark(health, "state", gateway.status);
  write(health, gateway.status);
  const lines = [];
  if (gateway.reason) lines.push(["warn", gateway.reason]);
  for (const backend of gateway.backends) {
    const name = gateway.backends.length > 1 ? `Backend ${backend.backend}` : "Backend";
    const verdict = backend.verdict;
    const bad = verdict && ["gil-bound", "close"].includes(verdict.verdict);
    if (bad) lines.push(["warn", `${name}: ${verdict.advice}.`]);
    else if (backend.body) lines.push(["note", `${name}: ${backend.body}${verdict ? `; Python's lock: ${verdict.advice}` : ""}`]);
  }
  write(pause, gateway.line.paused ? "Resume queue" : "Pause queue");
  show(pause, gateway.line.enabled && context.may("admin"));
  if (gateway.line.paused) {
    lines.push(["warn", "The queue is paused: jobs of the front door are taken and wait. Resume it to send them to the GPUs."]);
  }
  if (gateway.line.waiting) lines.push(["note", `${gateway.line.waiting} job(s) wait at the gateway for a GPU.`]);
  if (gateway.denied) lines.push(["note", `${gateway.denied} request(s) to the front door were refused by a limit.`]);
  const told = JSON.stringify(lines);
  const list = document.getElementById("advice");
  if (list.dataset.told === told) return;
  list.dataset.told = told;
  list.replaceChildren(...lines.map(([kind, text]) => make("li", { "data-kind": kind }, text)));
}

watchFilter(context);
setInterval(() => tick(context), 1000);
connect();
