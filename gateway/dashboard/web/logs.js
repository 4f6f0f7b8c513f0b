// The last lines of each backend, all or those that one GPU's jobs wrote. A reader who has scrolled up is left where
// he is.

import { make, show } from "./dom.js";

const kept = 500;
const places = new Map();

export function clearLogs() {
  for (const { lines, text } of places.values()) {
    lines.length = 0;
    text.textContent = "";
  }
}

export function drawLog({ backend, lines }, backends) {
  show(document.getElementById("logs"), true);
  let place = places.get(backend);
  if (!place) {
    const name = backends.length > 1 ? `Backend ${backend}` : "The backend";
    const text = make("pre", { tabIndex: 0, role: "log", "aria-live": "off", "aria-label": `${name}, its last lines` });
    const root = make("details", {}, make("summary", {}, `${name}, its last ${kept} lines`));
    place = { lines: [], text, mark: "" };
    const [first, last] = backends[backend].gpus;
    if (last > first) root.append(make("label", {}, "Lines of ", choice(place, first, last)));
    root.append(text);
    root.addEventListener("toggle", () => { text.scrollTop = text.scrollHeight; });
    document.getElementById("log-list").append(root);
    places.set(backend, place);
  }
  place.lines.push(...lines.map(([, line]) => line));
  place.lines.splice(0, place.lines.length - kept);
  draw(place);
}

// A backend counts its lanes from 0 and begins the lines of a job with its lane.
function choice(place, first, last) {
  const select = make("select", {}, make("option", { value: "" }, "everything"));
  for (let gpu = first; gpu <= last; gpu += 1) {
    select.append(make("option", { value: `[lane ${gpu - first} ` }, `jobs on GPU ${gpu}`));
  }
  select.addEventListener("change", () => {
    place.mark = select.value;
    draw(place);
    place.text.scrollTop = place.text.scrollHeight;
  });
  return select;
}

// What one job wrote, as far as it is still there. Its id is percent-encoded in the mark, as Python's quote does.
export function linesOf(job) {
  const id = encodeURIComponent(job).replace(/[!'()*]/g, (sign) => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`);
  const found = [];
  for (const { lines } of places.values()) {
    for (const line of lines) {
      const mark = /^\[(?:lane \d+ )?job ([^\s\]]+)\] /.exec(line);
      if (mark && mark[1] === id) found.push(line.slice(mark[0].length));
    }
  }
  return found;
}

function draw({ lines, text, mark }) {
  const below = text.scrollHeight - text.scrollTop - text.clientHeight < 30;
  text.textContent = lines.filter((line) => line.startsWith(mark)).join("\n");
  if (below) text.scrollTop = text.scrollHeight;
}
