// Versions that each host holds and serves, updated every second, so that a rollout can be watched.

import { call, chip, colourOf, element } from "./parts.js";

const SECONDS = 90;
const SVG = "http://www.w3.org/2000/svg";

/** Polls every second while the page is visible. `onVersions` gets the loaded versions. */
export function watchHosts(place, onVersions) {
  const samples = [];
  let failed = 0;

  async function look() {
    if (!document.hidden) {
      try {
        const { content } = await call("v1/hosts");
        failed = 0;
        const rows = flatten(content);
        samples.push(shares(rows));
        if (samples.length > SECONDS) samples.shift();
        show(place, rows, samples);
        onVersions(loaded(rows));
      } catch (error) {
        failed += 1;
        place.querySelector(".stale")?.remove();
        const since = failed > 1 ? ` for ${failed} attempts` : "";
        place.prepend(element("p", { class: "stale" }, `Hosts unknown${since}: ${error.message}`));
      }
    }
    setTimeout(look, 1000);
  }
  look();
}

function flatten(content) {
  // The models of a host that does not answer are null.
  return Object.entries(content).flatMap(([host, models]) =>
    models
      ? Object.entries(models).map(([model, { serving, loaded: held }]) => ({ host, model, serving, loaded: held, answers: true }))
      : [{ host, model: null, serving: null, loaded: [], answers: false }],
  );
}

function shares(rows) {
  const counts = new Map();
  for (const { serving } of rows) if (serving) counts.set(serving, (counts.get(serving) ?? 0) + 1);
  return [...counts].map(([version, count]) => ({ version, share: count / rows.length })).sort(byVersion);
}

const byVersion = (a, b) => (a.version < b.version ? -1 : 1);

function loaded(rows) {
  const found = new Map();
  for (const row of rows) {
    for (const version of row.loaded) found.set(version, found.get(version) || row.serving === version);
  }
  return [...found].map(([version, serving]) => ({ version, serving })).sort(byVersion);
}

function show(place, rows, samples) {
  const now = samples.at(-1);
  const several = new Set(rows.filter(({ answers }) => answers).map(({ model }) => model)).size > 1;
  const percents = now.map(({ version, share }) => `${version.slice(0, 8)} ${Math.round(100 * share)}%`).join(", ");
  place.replaceChildren(
    element("p", { class: "shares" }, ...now.map(({ version, share }) => chip(version, `${Math.round(100 * share)}%`))),
    picture(samples, `Share of hosts that serve each version during the last ${SECONDS} seconds; now ${percents || "none"}`),
    element(
      "p",
      { class: "axis", "aria-hidden": "true" },
      element("span", {}, `${SECONDS} s ago`),
      element("span", {}, "share of hosts that serve it"),
      element("span", {}, "now"),
    ),
    element("ul", { class: "hostlist" }, ...rows.map((row) => line(row, several))),
  );
}

function line({ host, model, serving, loaded: versions, answers }, several) {
  const others = versions.filter((version) => version !== serving);
  return element(
    "li",
    {},
    element("span", { class: "host" }, host, several && model && element("small", {}, ` ${model}`)),
    element(
      "span",
      { class: "versions" },
      serving ? chip(serving, "serving") : element("span", { class: "chip none" }, answers ? "serves none" : "does not answer"),
      ...others.map((version) => chip(version, "loaded")),
    ),
  );
}

function picture(samples, label) {
  const drawn = document.createElementNS(SVG, "svg");
  drawn.setAttribute("viewBox", `0 0 ${SECONDS} 40`);
  drawn.setAttribute("preserveAspectRatio", "none");
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", label);
  drawn.setAttribute("class", "timeline");
  samples.forEach((sample, number) => {
    let top = 0;
    for (const { version, share } of sample) {
      const bar = document.createElementNS(SVG, "rect");
      const place = { x: SECONDS - samples.length + number, y: 40 * top, width: 1.05, height: 40 * share };
      for (const [name, value] of Object.entries(place)) bar.setAttribute(name, value);
      bar.setAttribute("class", colourOf(version));
      drawn.append(bar);
      top += share;
    }
  });
  return drawn;
}
