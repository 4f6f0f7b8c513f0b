// One card for each GPU. Cards are made once; afterwards only what differs is written.

import { ask, button, bytes, duration, jobPath, make, mark, say, show, write } from "./dom.js";

const cards = new Map();
const words = {
  ready: "ready", busy: "busy", down: "down", faulted: "faulted", draining: "draining", absent: "no lane",
};

export function clearGpus() {
  for (const card of cards.values()) card.root.remove();
  cards.clear();
}

export function drawGpus(gpus, context) {
  for (const gpu of gpus) {
    let card = cards.get(gpu.gpu);
    if (!card) {
      card = makeCard(gpu.gpu, context);
      cards.set(gpu.gpu, card);
      document.getElementById("gpus").append(card.root);
    }
    if (card.told && card.told.state !== gpu.state && worth(card.told.state, gpu.state)) {
      say(`GPU ${gpu.gpu} is ${words[gpu.state] || gpu.state}.`);
    }
    card.told = gpu;
    drawCard(card, gpu, context);
  }
}

// Jobs' progress comes with the jobs; a card shows it when its running job has changed.
export function drawWork(jobs, context) {
  for (const card of cards.values()) {
    if (card.told && card.told.running.some((id) => jobs.has(id))) drawCard(card, card.told, context);
    else if (card.told && card.told.queue.some((id) => jobs.has(id))) drawQueue(card, card.told, context);
  }
}

function worth(before, now) {
  const usual = new Set(["ready", "busy"]);
  return !(usual.has(before) && usual.has(now));
}

function makeCard(number, context) {
  const title = make("h3", { id: `gpu-${number}` }, `GPU ${number}`);
  const state = make("span", { class: "badge" });
  const device = make("span", { class: "device" });
  const image = make("img", { alt: "", hidden: true });
  const instead = make("span", {}, "no preview");
  image.addEventListener("error", () => { show(image, false); show(instead, true); });
  const job = make("p", { class: "job" });
  const bar = make("progress", { max: 1, value: 0, "aria-label": `Progress of the job on GPU ${number}` });
  const node = make("p", { class: "node" });
  const steps = make("p", { class: "steps" });
  const reason = make("p", { class: "reason" });
  const facts = {};
  const list = make("dl", { class: "facts" });
  for (const [name, text] of [["memory", "VRAM"], ["weights", "Models held"], ["card", "Card"],
    ["rate", "Jobs/min"], ["denied", "Denied"]]) {
    facts[name] = { term: make("dt", {}, text), value: make("dd"), seen: name !== "card" };
    list.append(facts[name].term, facts[name].value);
  }
  const queue = make("ul", { class: "queue", "aria-label": `Waiting on GPU ${number}` });
  const drain = button("Drain", async () => {
    const drained = cards.get(number).told.drained;
    const said = await ask("POST", `admin/gpus/${number}/${drained ? "resume" : "drain"}`);
    return `GPU ${number}: ${said.reason || "takes jobs again."}`;
  });
  const free = button("Free memory", async () => {
    await ask("POST", `admin/gpus/${number}/free`);
    return `GPU ${number} was told to let go of its models.`;
  }, `Free the memory of GPU ${number}`);
  const buttons = make("div", { class: "buttons" }, drain, free);
  const root = make("li", { class: "gpu", role: "group", "aria-labelledby": `gpu-${number}` },
    make("div", { class: "top" }, title, state, device),
    make("div", { class: "work" },
      make("div", { class: "picture" }, image, instead),
      make("div", { class: "now" }, job, bar, node, steps, reason)),
    list, queue, buttons);
  show(buttons, context.may("admin"));
  return { root, state, device, image, instead, job, bar, node, steps, reason, facts, queue, drain, buttons,
    number, source: "", told: null };
}

function drawCard(card, gpu, context) {
  mark(card.root, "state", gpu.state);
  mark(card.state, "state", gpu.state);
  write(card.state, words[gpu.state] || gpu.state);
  write(card.device, gpu.memory ? gpu.memory.name : "");
  const id = gpu.running[0];
  const job = id === undefined ? null : context.jobs.get(id);
  drawJob(card, gpu, id, job);
  drawPicture(card, id, job);
  drawFacts(card, gpu);
  drawQueue(card, gpu, context);
  write(card.drain, gpu.drained ? "Resume" : "Drain");
  card.drain.setAttribute("aria-label", `${gpu.drained ? "Resume" : "Drain"} GPU ${gpu.gpu}`);
  show(card.buttons, context.may("admin"));
}

function drawJob(card, gpu, id, job) {
  const more = gpu.running.length + gpu.others - 1;
  if (id !== undefined) write(card.job, more > 0 ? `${id} and ${more} more` : id);
  else write(card.job, gpu.others ? "a job of another key" : idle(gpu.state));
  card.job.title = id || "";
  const progress = job && job.progress;
  const share = shareOf(progress);
  if (share === null && id !== undefined) card.bar.removeAttribute("value");
  else card.bar.value = share || 0;
  write(card.node, nodeOf(progress));
  write(card.steps, stepsOf(progress));
  for (const part of [card.bar, card.node, card.steps]) show(part, id !== undefined || !gpu.reason);
  const advice = {
    down: " It is started again by itself; its last words are in the backend's log. If this goes on: comfy-gateway doctor.",
    faulted: " It starts again when the others are done. Its port answers 503 until then.",
    draining: " Resume it to give it jobs again.",
  };
  write(card.reason, gpu.reason ? gpu.reason + (advice[gpu.state] || "") : "");
}

function idle(state) {
  return { ready: "Nothing to do.", busy: "A job begins or ends …", down: "No backend.", faulted: "Takes no jobs." }[state] || "";
}

export function shareOf(progress) {
  if (!progress) return null;
  const step = progress.max ? Math.min(1, (progress.value || 0) / progress.max) : 0;
  if (progress.nodes_total) return Math.min(1, (progress.nodes_done + step) / progress.nodes_total);
  return progress.max ? step : null;
}

function nodeOf(progress) {
  if (!progress || progress.node === null) return "";
  return progress.node_class ? `${progress.node_class} (node ${progress.node})` : `node ${progress.node}`;
}

function stepsOf(progress) {
  if (!progress) return "";
  const found = [];
  if (progress.max) found.push(`${Math.round(100 * progress.value / progress.max)} % of this node`);
  if (progress.nodes_total) found.push(`${progress.nodes_done} of ${progress.nodes_total} nodes`);
  return found.join(", ");
}

function drawPicture(card, id, job) {
  const number = job && job.progress ? job.progress.picture : 0;
  const source = number ? jobPath(id, `/preview?n=${number}`) : "";
  if (source === card.source) return;
  card.source = source;
  if (source) {
    card.image.alt = `Preview of job ${id}`;
    card.image.src = source;
  } else {
    card.image.removeAttribute("src");
  }
  show(card.image, Boolean(source));
  show(card.instead, !source);
}

function drawFacts(card, gpu) {
  const { memory, weights, card: told } = gpu;
  fact(card.facts.memory, memory && `${bytes(memory.used)} of ${bytes(memory.total)}`);
  if (memory) write(card.facts.memory.term, memory.type === "cpu" ? "Memory (CPU)" : "VRAM");
  fact(card.facts.weights, weights && heldOf(weights));
  fact(card.facts.card, told && `${told.temperature} °C, ${told.utilisation} % busy`);
  fact(card.facts.rate, String(gpu.jobs_per_minute));
  fact(card.facts.denied, String(gpu.denied));
}

function heldOf(weights) {
  const host = weights.host_shared + weights.host_own;
  const found = [];
  if (weights.device) found.push(`${bytes(weights.device)} on the GPU`);
  if (host) found.push(`${bytes(host)} on the host`);
  return found.join(", ") || "none";
}

function fact(place, text) {
  // What comes and goes with a backend keeps its line; what few machines tell has one from when it is told.
  if (text) place.seen = true;
  show(place.term, place.seen);
  show(place.value, place.seen);
  write(place.value, text || "–");
}

function drawQueue(card, gpu, context) {
  const lines = gpu.queue.slice(0, 2).map((id) => {
    const job = context.jobs.get(id);
    const when = [];
    if (job && job.position !== null) when.push(`place ${job.position}`);
    if (job && job.eta_seconds !== null) when.push(`in about ${duration(job.eta_seconds)}`);
    return [id, when.join(", ")];
  });
  const rest = gpu.waiting - lines.length;
  if (!gpu.waiting) lines.push(["Nobody waits.", ""]);
  else if (rest > 0) lines.push([`and ${rest} more`, ""]);
  const told = JSON.stringify(lines);
  if (card.queueTold === told) return;
  card.queueTold = told;
  card.queue.replaceChildren(...lines.map(([name, when]) => make("li", {},
    make("span", { class: "name", title: name }, name), make("span", { class: "when" }, when))));
}
