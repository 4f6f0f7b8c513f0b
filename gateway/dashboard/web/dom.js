// Elements and words. Every text goes through textContent: nothing that a client sent is ever read as HTML.

export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") element.className = value;
    else if (key === "on") for (const [event, call] of Object.entries(value)) element.addEventListener(event, call);
    else if (key.startsWith("data-") || key.startsWith("aria-") || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

// Writes only what differs, so that nothing loses its focus or its place.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function mark(element, name, value) {
  if (element.dataset[name] !== value) element.dataset[name] = value;
}

export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

export function bytes(count) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let at = 0;
  while (count >= 1000 && at < units.length - 1) {
    count /= 1000;
    at += 1;
  }
  return `${count.toFixed(count >= 100 || at === 0 ? 0 : 1)} ${units[at]}`;
}

export function duration(seconds) {
  const whole = Math.max(0, seconds);
  if (whole < 10) return `${whole.toFixed(1)} s`;
  if (whole < 60) return `${Math.round(whole)} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${Math.round(whole % 60)} s`;
  if (whole < 48 * 3600) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} days`;
}

export function ago(seconds) {
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds / 5) * 5} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} days ago`;
}

export function jobPath(id, rest = "") {
  return `jobs/${encodeURIComponent(id)}${rest}`;
}

let clearing = 0;

// A word for people who look and for people who listen.
export function say(text) {
  const said = document.getElementById("said");
  said.textContent = text;
  clearTimeout(clearing);
  clearing = setTimeout(() => { said.textContent = ""; }, 6000);
}

// The JSON of an answer; throws an Error whose message says what is wrong and what to do.
export async function ask(method, path) {
  let answer;
  try {
    answer = await fetch(path, { method, headers: { Accept: "application/json" } });
  } catch {
    throw new Error("The gateway does not answer. Is comfy-gateway up running?");
  }
  const text = await answer.text();
  let told = null;
  try {
    told = JSON.parse(text);
  } catch {
    told = null;
  }
  if (answer.ok) return told;
  const error = told && told.error ? told.error : {};
  const words = [error.message, error.details].filter(Boolean).join(" ");
  throw new Error(words || `The gateway answered ${answer.status}.`);
}

// A button that is busy while its work is under way and says how it went.
export function button(text, work, described = "") {
  const made = make("button", { type: "button" }, text);
  if (described) made.setAttribute("aria-label", described);
  made.addEventListener("click", async () => {
    if (made.getAttribute("aria-busy") === "true") return;
    made.setAttribute("aria-busy", "true");
    try {
      const said = await work();
      if (said) say(said);
    } catch (error) {
      say(error.message);
    } finally {
      made.removeAttribute("aria-busy");
    }
  });
  return made;
}
