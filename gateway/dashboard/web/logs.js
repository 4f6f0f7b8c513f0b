// The last lines of each backend. A reader who has scrolled up is left where he is.

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
    const name = backends > 1 ? `Backend ${backend}` : "The backend";
    const text = make("pre", { tabIndex: 0, role: "log", "aria-live": "off", "aria-label": `${name}, its last lines` });
    const root = make("details", {}, make("summary", {}, `${name}, its last ${kept} lines`), text);
    root.addEventListener("toggle", () => { text.scrollTop = text.scrollHeight; });
    document.getElementById("log-list").append(root);
    place = { lines: [], text };
    places.set(backend, place);
  }
  const { text } = place;
  const below = text.scrollHeight - text.scrollTop - text.clientHeight < 30;
  place.lines.push(...lines.map(([, line]) => line));
  place.lines.splice(0, place.lines.length - kept);
  text.textContent = place.lines.join("\n");
  if (below) text.scrollTop = text.scrollHeight;
}
