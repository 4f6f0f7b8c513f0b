// One job in full: its times, its error, its files, and why it is where it is.

import { ask, duration, jobPath, make } from "./dom.js";
import { linesOf } from "./logs.js";

const dialog = document.getElementById("details");
const title = document.getElementById("details-title");
const body = document.getElementById("details-body");

export async function open(id) {
  const job = await ask("GET", jobPath(id));
  title.textContent = `Job ${id}`;
  body.replaceChildren(facts(job), ...problem(job), ...files(job), ...log(id));
  dialog.showModal();
  try {
    const told = await ask("GET", jobPath(id, "/explain"));
    body.append(...explanation(told));
  } catch (error) {
    body.append(make("h3", {}, "Why there"), make("p", {}, error.message));
  }
}

function facts(job) {
  const list = make("dl", { class: "facts" });
  const add = (name, text) => list.append(make("dt", {}, name), make("dd", {}, text));
  add("State", job.state + (job.cancel_requested && job.ended_at === null ? " (is being canceled)" : ""));
  add("GPU", job.gpu === null ? "none yet" : String(job.gpu));
  add("Came in by", job.port || "–");
  add("Client", job.client_id || "–");
  for (const { state, at } of job.times) add(state, new Date(at * 1000).toLocaleString());
  if (job.started_at !== null && job.ended_at !== null) add("Ran", duration(job.ended_at - job.started_at));
  add("Attempts", String(job.attempts));
  return list;
}

function problem(job) {
  if (!job.error) return [];
  const where = job.error.node_type ? `In ${job.error.node_type}, node ${job.error.node_id}. ` : "";
  const next = job.state === "lost"
    ? "Nobody can say what became of it. Run it again if its files are not there."
    : "Mend the workflow or its inputs, then submit it again; the backend's log has the whole traceback.";
  return [make("h3", {}, "What went wrong"), make("p", {}, where + next),
    make("pre", { tabIndex: 0 }, String(job.error.message || job.error.type || ""))];
}

function files(job) {
  if (!job.outputs.length) return [];
  const list = make("div", { class: "files" });
  job.outputs.forEach((output, at) => {
    const link = make("a", { href: jobPath(job.id, `/outputs/${at}`), target: "_blank", rel: "noopener" });
    if (output.media_type.startsWith("image/")) {
      link.append(make("img", { alt: output.filename, loading: "lazy", src: jobPath(job.id, `/outputs/${at}`) }));
    } else {
      link.append(output.filename);
    }
    list.append(link);
  });
  return [make("h3", {}, "What it made"), list];
}

function log(id) {
  const lines = linesOf(id);
  return lines.length ? [make("h3", {}, "What it wrote"), make("pre", { tabIndex: 0 }, lines.join("\n"))] : [];
}

function explanation(told) {
  const rest = Object.entries(told).filter(([name]) => !["id", "state", "gpu", "port", "reason"].includes(name));
  const found = [make("h3", {}, "Why there"), make("p", {}, told.reason || "Nothing more is known.")];
  if (rest.length) found.push(make("pre", { tabIndex: 0 }, JSON.stringify(Object.fromEntries(rest), null, 2)));
  return found;
}
