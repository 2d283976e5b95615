// Requests recommendations and shows them: one release, or two side by side.

import { answerList } from "./answers.js";
import { combobox } from "./combobox.js";
import { watchHosts } from "./hosts.js";
import { Refused, call, detailsOf, element, keyOf } from "./parts.js";

const find = (id) => document.getElementById(id);
const form = find("ask");
const user = find("user");
const item = find("item");
// Subject of the request: a user's id, or the items of a history.
const state = { userId: null, chosen: [] };
let asking = null;

const kind = () => form.elements.kind.value;
const say = (text) => find("message").replaceChildren(text);

function setKind(value) {
  form.elements.kind.value = value;
  find("user-field").hidden = value !== "user";
  find("history-field").hidden = value !== "history";
}

for (const radio of form.elements.kind) radio.addEventListener("change", () => setKind(kind()));

combobox(
  user,
  async (prefix, signal) => {
    const { content } = await call(`v1/users?limit=8&prefix=${encodeURIComponent(prefix)}`, undefined, signal);
    const ids = content.user_ids;
    // 5 and "5" are different users.
    const isTwice = (id) => ids.some((other) => other !== id && String(other) === String(id));
    return ids.map((id) => ({ value: id, label: String(id), hint: isTwice(id) ? kindOf(id) : null }));
  },
  (suggestion, text) => {
    if (!suggestion && !text) return;
    state.userId = suggestion ? suggestion.value : text;
    user.value = String(state.userId);
    ask();
  },
);

const kindOf = (id) => (typeof id === "string" ? "text" : "number");

combobox(
  item,
  async (text, signal) => {
    if (!text) return [];
    const { content } = await call(`v1/items?limit=8&q=${encodeURIComponent(text)}`, undefined, signal);
    return content.items.map((card) => ({ value: card, label: card.title ?? String(card.item_id), hint: detailsOf(card) }));
  },
  (suggestion, text) => {
    if (suggestion) add([suggestion.value]);
    else if (text) look([text]);
    else if (state.chosen.length) ask();
  },
);

item.addEventListener("paste", (event) => {
  const lines = event.clipboardData.getData("text").split(/\r?\n/).filter((line) => line.trim());
  if (lines.length < 2) return;
  event.preventDefault();
  look(lines.map((line) => line.trim()));
});

/** Look up names, add their items to the history, and report names without an item. */
async function look(names) {
  try {
    const { content } = await call("v1/items/find", { names });
    const unknown = content.found.filter(({ item: card }) => !card).map(({ name }) => `“${name}”`);
    const several = content.found.filter(({ matches }) => matches > 1).length;
    add(content.found.filter(({ item: card }) => card).map(({ item: card }) => card));
    const doubts = several ? `${several} of ${names.length} names match several items; the most frequent item was added. ` : "";
    say(doubts + (unknown.length ? `Not found: ${unknown.join(", ")}.` : ""));
  } catch (error) {
    say(error.message);
  }
}

function add(cards) {
  state.chosen.push(...cards);
  item.value = "";
  say("");
  showChosen();
}

function showChosen() {
  const line = (card, number) =>
    element(
      "li",
      {},
      card.title ?? String(card.item_id),
      element(
        "button",
        {
          type: "button",
          "aria-label": `Remove ${card.title ?? card.item_id}`,
          onclick: () => {
            state.chosen.splice(number, 1);
            showChosen();
            const buttons = find("chosen").querySelectorAll("button");
            (buttons[Math.min(number, buttons.length - 1)] ?? item).focus();
          },
        },
        "×",
      ),
    );
  find("chosen").replaceChildren(...state.chosen.map(line));
  find("chosen").scrollTop = find("chosen").scrollHeight;
}

/** Append an item to the history that is shown, and request again. */
function extend(card, history) {
  state.chosen = [...history, card];
  showChosen();
  setKind("history");
  ask();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (kind() === "user" && user.value.trim() !== String(state.userId ?? "")) state.userId = user.value.trim() || null;
  ask();
});

function question() {
  if (kind() === "history") return state.chosen.length ? { history: state.chosen.map(({ item_id }) => ({ item_id })) } : null;
  return state.userId === null ? null : { user_id: state.userId };
}

/** Return the recommendations of one release, and their explanation. */
async function answer(asked, k, version, signal) {
  const retrieved = await call("v1/retrieve", { ...asked, k, ...(version && { version }) }, signal);
  const { items, version: met } = retrieved.content;
  const wanted = { ...asked, version: met, item_ids: items.map(({ item_id }) => item_id) };
  const { content: explained } = await call("v1/explain", wanted, signal);
  return { ...retrieved, explained };
}

async function ask() {
  asking?.abort();
  const asked = question();
  if (!asked) {
    say(kind() === "user" ? "Type the id of a user." : "The history is empty. Add an item.");
    return (kind() === "user" ? user : item).focus();
  }
  asking = new AbortController();
  const { signal } = asking;
  const place = find("answers");
  place.setAttribute("aria-busy", "true");
  const releases = [form.elements.release.value, form.elements.beside.value].filter((value, at) => at === 0 || value);
  const answers = [];
  try {
    // One after the other, so that the measured durations do not affect each other.
    for (const version of releases) answers.push(await answer(asked, Number(form.elements.k.value), version, signal));
    if (signal.aborted) return;
    showAnswers(answers);
    say(answers.map(({ content }) => `${content.items.length} items from ${content.version.slice(0, 8)}`).join(", ") + ".");
    remember();
  } catch (error) {
    if (signal.aborted) return;
    place.replaceChildren(find("answers-heading"), element("p", { class: "notice", role: "alert" }, error.message));
    if (!(error instanceof Refused)) throw error;
  } finally {
    // A newer request keeps the page busy.
    if (!signal.aborted) place.removeAttribute("aria-busy");
  }
}

function showAnswers(answers) {
  const history = answers[0].explained.history;
  const cards = new Map(answers.flatMap(({ explained }) => explained.history).map((card) => [keyOf(card.item_id), card]));
  const lists = answers.map((one, at) => answerList(one, answers[1 - at] ?? null, cards, (card) => extend(card, history)));
  const both = answers.length > 1 && shared(answers);
  const place = find("answers");
  // Replacing the focused button would lose the focus.
  const hadFocus = place.contains(document.activeElement);
  find("answers-heading").textContent = kind() === "user" ? `Recommended for user ${state.userId}` : "Recommended for this history";
  place.replaceChildren(
    find("answers-heading"),
    ...(both ? [element("p", { class: "both" }, both)] : []),
    element("div", { class: answers.length > 1 ? "lists two" : "lists" }, ...lists),
  );
  if (hadFocus) place.focus();
  showHistory(history, answers[0].content);
}

function shared([{ content: one }, { content: other }]) {
  const ids = new Set(one.items.map(({ item_id }) => keyOf(item_id)));
  const count = other.items.filter(({ item_id }) => ids.has(keyOf(item_id))).length;
  return `${count} of ${Math.max(one.items.length, other.items.length)} items are in both`;
}

function showHistory(history, { history_length: read, unknown_items: unknown }) {
  find("history").hidden = false;
  const notes = [`${history.length} ${history.length === 1 ? "item" : "items"}, newest first`];
  if (read < history.length) notes.push(`the user tower read the last ${read}`);
  if (unknown.length) notes.push(`unknown to this release: ${unknown.join(", ")}`);
  find("history-length").textContent = history.length ? notes.join(" · ") : "This user has no events.";
  const when = (seconds) => new Date(Number(seconds) * 1000).toISOString().slice(0, 10);
  const line = (card) =>
    element(
      "li",
      { "data-item": keyOf(card.item_id) },
      element("b", {}, card.title ?? String(card.item_id)),
      element("small", {}, [card.timestamp && when(card.timestamp), detailsOf(card)].filter(Boolean).join(" · ")),
    );
  find("events").replaceChildren(...history.toReversed().map(line));
}

/** Update the releases to choose from when hosts load and unload them; the choice stays. */
let known = "";
function offer(versions) {
  const key = JSON.stringify(versions);
  if (key === known) return;
  known = key;
  for (const select of [form.elements.release, form.elements.beside]) {
    const { value } = select;
    const options = versions.map(({ version, serving }) =>
      element("option", { value: version }, version.slice(0, 8) + (serving ? " (serving)" : "")),
    );
    select.replaceChildren(select.firstElementChild, ...options);
    select.value = versions.some(({ version }) => version === value) ? value : "";
  }
}

/** Put the request into the address, so that it can be shared. */
function remember() {
  const address = new URLSearchParams({ k: form.elements.k.value });
  if (kind() === "user") address.set(typeof state.userId === "string" ? "user" : "number", state.userId);
  else for (const { item_id } of state.chosen) address.append("item", item_id);
  history.replaceState(null, "", `#${address}`);
}

/** Show one of the first users by id, who have events: the first, or any other than the one that is shown. */
async function sample(isFirst) {
  try {
    const { content } = await call(`v1/users?limit=${isFirst ? 1 : 100}`);
    const ids = content.user_ids.filter((id) => isFirst || id !== state.userId);
    if (!ids.length) return say("No user has events yet. Compose a history.");
    // The user may have typed or asked in the meantime.
    if (isFirst && (user.value || asking || kind() !== "user")) return;
    state.userId = ids[Math.floor(Math.random() * ids.length)];
    user.value = String(state.userId);
    await ask();
  } catch (error) {
    say(error.message);
  }
}

find("sample").addEventListener("click", () => sample(false));

async function recall() {
  if (!location.hash) return sample(true);
  const address = new URLSearchParams(location.hash.slice(1));
  if ([...form.elements.k.options].some(({ value }) => value === address.get("k"))) form.elements.k.value = address.get("k");
  const number = address.get("number");
  if (/^-?\d+$/.test(number ?? "")) state.userId = Number.isSafeInteger(Number(number)) ? Number(number) : BigInt(number);
  else if (address.get("user")) state.userId = address.get("user");
  if (state.userId !== null) {
    user.value = String(state.userId);
    return ask();
  }
  if (address.has("item")) {
    setKind("history");
    await look(address.getAll("item"));
    if (state.chosen.length) await ask();
  }
}

setKind(kind());
watchHosts(find("hosts"), offer);
recall();
