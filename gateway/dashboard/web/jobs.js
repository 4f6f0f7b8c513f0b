// The table of jobs: one row for each, kept where it is; only cells whose text differs are written.

import { ago, ask, button, duration, jobPath, make, mark, show, write } from "./dom.js";
import { open } from "./details.js";
import { shareOf } from "./gpus.js";

const rows = new Map();
const state = document.getElementById("filter-state");
const text = document.getElementById("filter-text");

export function clearJobs() {
  for (const row of rows.values()) row.root.remove();
  rows.clear();
}

export function drawJobs(jobs, gone, context) {
  for (const id of gone) {
    const row = rows.get(id);
    if (row) row.root.remove();
    rows.delete(id);
  }
  for (const job of [...jobs].sort((one, other) => one.seq - other.seq)) {
    let row = rows.get(job.id);
    if (!row) {
      row = makeRow(job.id, context);
      rows.set(job.id, row);
      place(row, job);
    }
    row.job = job;
    drawRow(row, job, context);
  }
  filter(context);
}

export function tick(context) {
  for (const row of rows.values()) drawTimes(row, row.job, context);
}

export function watchFilter(context) {
  for (const field of [state, text]) field.addEventListener("input", () => filter(context));
  document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
}

function place(row, job) {
  const body = document.getElementById("rows");
  let before = body.firstElementChild;
  while (before && Number(before.dataset.seq) > job.seq) before = before.nextElementSibling;
  row.root.dataset.seq = job.seq;
  body.insertBefore(row.root, before);
}

function makeRow(id, context) {
  const cells = {};
  const root = make("tr");
  for (const name of ["job", "state", "gpu-of", "client", "when", "ran", "output", "do"]) {
    cells[name] = make("td", { class: name });
    root.append(cells[name]);
  }
  const name = button(id, () => open(id), `Job ${id}: details, and why it is where it is`);
  name.className = "id";
  name.title = id;
  const more = make("span", { class: "more" });
  cells.job.append(name, more);
  const badge = make("span", { class: "badge" });
  cells.state.append(badge);
  const cancel = button("Cancel", async () => {
    const job = await ask("DELETE", jobPath(id));
    return job.ended_at === null ? `Job ${id} is being canceled.` : `Job ${id}: ${job.state}.`;
  }, `Cancel job ${id}`);
  const again = button("Run again", async () => {
    const job = await ask("POST", jobPath(id, "/rerun"));
    return `Submitted once more, as job ${job.id}.`;
  }, `Run job ${id} again`);
  cells.do.append(make("div", { class: "buttons" }, cancel, again));
  return { root, cells, more, badge, cancel, again, job: null, output: "" };
}

function drawRow(row, job, context) {
  mark(row.root, "state", job.state);
  mark(row.badge, "state", job.state);
  const share = shareOf(job.progress);
  const percent = job.state === "running" && share !== null ? ` ${Math.round(100 * share)} %` : "";
  write(row.badge, (job.cancel_requested && job.ended_at === null ? "canceling" : job.state) + percent);
  write(row.more, words(job));
  row.more.title = row.more.textContent;
  write(row.cells["gpu-of"], job.gpu === null ? "–" : String(job.gpu));
  write(row.cells.client, job.client_id || "");
  drawTimes(row, job, context);
  drawOutput(row, job);
  show(row.cancel, job.ended_at === null && context.may("submit"));
  show(row.again, job.ended_at !== null && context.may("submit"));
}

function words(job) {
  if (job.error) {
    const where = job.error.node_type ? `${job.error.node_type} (node ${job.error.node_id}): ` : "";
    const first = String(job.error.message || job.error.type || "").split("\n")[0];
    return `${where}${first || "Open it to see why."}`;
  }
  if (job.state === "queued") {
    const found = [];
    if (job.position !== null) found.push(`place ${job.position}`);
    if (job.eta_seconds !== null) found.push(`in about ${duration(job.eta_seconds)}`);
    return found.join(", ");
  }
  return job.outputs.length ? job.outputs.map((output) => output.filename).join(", ") : "";
}

function drawTimes(row, job, context) {
  const now = context.now();
  write(row.cells.when, job.created_at === null ? "" : ago(now - job.created_at));
  const began = job.started_at;
  write(row.cells.ran, began === null ? "" : duration((job.ended_at === null ? now : job.ended_at) - began));
}

function drawOutput(row, job) {
  const at = Math.max(0, job.outputs.findIndex((output) => output.type === "output"));
  const output = job.outputs[at];
  const source = output ? jobPath(job.id, `/outputs/${at}`) : "";
  if (source === row.output) return;
  row.output = source;
  row.cells.output.replaceChildren();
  if (!output) return;
  const link = make("a", { href: source, target: "_blank", rel: "noopener" });
  if (output.media_type.startsWith("image/")) {
    const image = make("img", { alt: `Output of job ${job.id}`, loading: "lazy", width: 48, height: 48 });
    image.addEventListener("error", () => { link.className = "file"; link.replaceChildren("open"); });
    image.src = source;
    link.append(image);
  } else {
    link.className = "file";
    link.append(output.filename);
  }
  row.cells.output.append(link);
}

function filter(context) {
  const wanted = state.value;
  const words = text.value.trim().toLowerCase();
  let shown = 0;
  for (const row of rows.values()) {
    const fits = matches(row.job, wanted, words);
    show(row.root, fits);
    shown += fits ? 1 : 0;
  }
  const most = rows.size >= context.most ? ` (the newest ${context.most})` : "";
  write(document.getElementById("shown"), rows.size ? `${shown} of ${rows.size}${most}` : "");
  const empty = document.getElementById("empty");
  show(empty, shown === 0);
  show(document.getElementById("table").parentElement, shown > 0);
  if (rows.size) write(empty, "No job fits the filter. Choose the state “all” and empty the text to see every job.");
  else if (!empty.firstElementChild) {
    empty.replaceChildren("No jobs yet. Submit one with ", make("code", {}, "comfy-gateway submit workflow.json"),
      ", with ", make("code", {}, "POST /jobs"), ", or open a GPU's port in the browser.");
  }
}

function matches(job, wanted, words) {
  if (wanted === "open" && job.ended_at !== null) return false;
  if (wanted && wanted !== "open" && job.state !== wanted) return false;
  if (!words) return true;
  const found = [job.id, job.client_id, job.state, `gpu ${job.gpu}`, job.error ? JSON.stringify(job.error) : "",
    ...job.outputs.map((output) => output.filename)];
  return found.some((each) => String(each).toLowerCase().includes(words));
}
