// Elements and calls that all parts of the page share. Text from outside becomes text nodes, never markup.

/** Return an element. String children become text; null and false children are left out. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** Error answer of the server, with its message. */
export class Refused extends Error {
  constructor(status, { code, message, field }) {
    super(field ? `${message} (${field})` : message);
    this.status = status;
    this.code = code;
  }
}

/** Return the JSON answer of an endpoint, and its duration in milliseconds. */
export async function call(path, body, signal) {
  const begin = performance.now();
  const options = { signal, cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers = { "content-type": "application/json" };
    options.body = JSON.stringify(body, bigAsNumber);
  }
  const [response, text] = await send(path, options);
  const milliseconds = performance.now() - begin;
  let content = null;
  try {
    content = JSON.parse(text, numberAsBig);
  } catch {
    content = null;
  }
  if (!response.ok) {
    throw new Refused(response.status, content?.error ?? { code: "unreadable", message: `status ${response.status}` });
  }
  return { content, milliseconds, server: serverTime(response.headers.get("server-timing")) };
}

async function send(path, options) {
  try {
    const response = await fetch(path, options);
    return [response, await response.text()];
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refused(0, { code: "no_answer", message: "The server cannot be reached." });
  }
}

// Ids are integers of 64 bits, and numbers of JavaScript are exact up to 53 bits.
function numberAsBig(key, value, context) {
  const isRounded = Number.isInteger(value) && !Number.isSafeInteger(value);
  return isRounded && /^-?\d+$/.test(context?.source ?? "") ? BigInt(context.source) : value;
}

const bigAsNumber = (key, value) => (typeof value === "bigint" ? JSON.rawJSON(String(value)) : value);

function serverTime(header) {
  const found = /(?:^|,)\s*total;[^,]*dur=([\d.]+)/.exec(header ?? "");
  return found ? Number(found[1]) : null;
}

/** Return an id as a key; 5 and "5" are different ids. */
export const keyOf = (id) => `${typeof id === "string" ? "text" : "number"}:${id}`;

/** Return what a card tells beside its title: the id, and the values of its columns with their names. */
export const detailsOf = ({ item_id, title, details }) =>
  [title && `item ${item_id}`, ...Object.entries(details ?? {}).map((pair) => pair.join(" "))].filter(Boolean).join(" · ");

/** Return a number with three digits, or with all digits before the point. */
export const rounded = (value) => value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(Math.max(1, Math.abs(value))))));

const versions = [];
const NUM_COLOURS = 6;

/** Return the class with the colour of a version; it stays the same while the page is open. */
export function colourOf(version) {
  if (!versions.includes(version)) versions.push(version);
  return `v${versions.indexOf(version) % NUM_COLOURS}`;
}

/** Return a short version with its colour, and the whole version as its title. */
export function chip(version, note = null) {
  return element(
    "span",
    { class: `chip ${colourOf(version)}`, title: version },
    element("span", { class: "dot", "aria-hidden": "true" }),
    version.slice(0, 8),
    note && element("small", {}, ` ${note}`),
  );
}

/** Return milliseconds as text. */
export const duration = (milliseconds) => `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;
