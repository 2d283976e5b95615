// Ranked items of one release, each with its reasons.

import { chip, detailsOf, duration, element, keyOf, rounded } from "./parts.js";

// A score is a similarity: a bar shows it on a scale that contains 0, so equal bars are equal scores.
const SCALES = {
  cosine: { name: "similarity", hint: "cosine of user and item, at most 1; a full bar is 1" },
  dot: { name: "score", hint: "inner product of user and item; bars start at 0 or at the least score below it, and end at the highest" },
};

/**
 * @param one { content, milliseconds, server, explained }
 * @param other the answer beside it, or null
 * @param past cards of the history by key
 * @param extend called with an item to append to the history
 */
export function answerList(one, other, past, extend) {
  const { content, explained } = one;
  const ranks = other && new Map(other.content.items.map(({ item_id }, at) => [keyOf(item_id), at]));
  const scores = content.items.map(({ score }) => score);
  const isCosine = explained.similarity === "cosine";
  const [least, best] = [Math.min(0, ...(isCosine ? [] : scores)), isCosine ? 1 : Math.max(0, ...scores)];
  const scale = SCALES[explained.similarity];
  const cards = explained.items;
  const hasPictures = cards.some(({ picture }) => picture);
  const lines = cards.map((card, at) => {
    const share = best > least ? Math.max(0, (scores[at] - least) / (best - least)) : 0;
    return line(card, at, { score: scores[at], share, move: ranks && moveOf(ranks.get(keyOf(card.item_id)), at), hasPictures, past, extend });
  });
  return element(
    "section",
    { class: "list", "aria-label": `Release ${content.version}` },
    heading(one),
    lines.length > 0 && element("p", { class: "heads", "aria-hidden": "true" }, element("span", {}, "rank and item"), element("span", { title: scale.hint }, scale.name)),
    lines.length ? element("ol", { class: "items" }, ...lines) : element("p", { class: "empty" }, "No items are left to recommend."),
  );
}

function heading({ content, milliseconds, server }) {
  const { version, user_tower_version: tower, index_version: index, host } = content;
  const pair = tower === index && index === version ? null : element("strong", { class: "bad" }, `tower ${tower}, index ${index}`);
  return element(
    "h3",
    {},
    chip(version),
    pair,
    element("span", { class: "latency" }, duration(milliseconds), server !== null && element("small", {}, ` (server ${duration(server)})`)),
    element("small", { class: "from" }, `from ${host}`),
  );
}

function moveOf(before, at) {
  if (before === undefined) return { text: "only here", hint: "not in the other list", class: "new" };
  if (before === at) return { text: "=", hint: "same rank in the other list", class: "same" };
  return { text: `${before > at ? "▲" : "▼"} ${Math.abs(before - at)}`, hint: `rank ${before + 1} in the other list`, class: "moved" };
}

function line(card, at, { score, share, move, hasPictures, past, extend }) {
  const name = card.title ?? String(card.item_id);
  const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("i"));
  bar.firstChild.style.width = `${Math.round(100 * share)}%`;
  const made = element(
    "li",
    {},
    element("span", { class: "rank", "aria-hidden": "true" }, String(at + 1)),
    hasPictures && picture(card),
    element("div", { class: "what" }, element("b", {}, name), element("small", {}, detailsOf(card))),
    element(
      "div",
      { class: "how" },
      move && element("span", { class: `move ${move.class}`, title: move.hint, "aria-label": move.hint, role: "img" }, move.text),
      element("span", { class: "score" }, rounded(score)),
      bar,
    ),
    element("button", { type: "button", class: "plus", "aria-label": `Add ${name} to the history`, title: "Add to the history", onclick: () => extend(card) }, "+"),
    card.reasons.length > 0 && because(card.reasons, past),
  );
  const keys = new Set(card.reasons.map(({ item_id }) => keyOf(item_id)));
  const mark = (on) => () => {
    for (const event of document.querySelectorAll("#events li")) event.classList.toggle("because", on && keys.has(event.dataset.item));
  };
  for (const [name, on] of [["mouseenter", true], ["mouseleave", false], ["focusin", true], ["focusout", false]]) {
    made.addEventListener(name, mark(on));
  }
  return made;
}

function because(reasons, past) {
  const parts = reasons.flatMap(({ item_id, similarity }, at) => [
    at ? ", " : "",
    element("span", { title: `similarity ${similarity.toFixed(2)}` }, past.get(keyOf(item_id))?.title ?? String(item_id)),
    element("small", {}, ` ${similarity.toFixed(2)}`),
  ]);
  return element("p", { class: "reasons" }, element("span", { class: "near" }, "similar to "), ...parts);
}

function picture({ picture: address }) {
  const frame = element("span", { class: "picture" });
  if (!address) return frame;
  const shown = element("img", { alt: "", width: 56, height: 56, loading: "lazy", decoding: "async", referrerpolicy: "no-referrer" });
  shown.addEventListener("error", () => shown.remove());
  shown.src = address;
  frame.append(shown);
  return frame;
}
