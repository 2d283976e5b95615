// An input with suggestions (the ARIA combobox pattern): arrow keys move, Enter selects, Escape closes.

import { element } from "./parts.js";

const WAIT_MILLISECONDS = 90;

/**
 * @param input the input; the element after it is its list
 * @param suggest (text, signal) => [{ value, label, hint }]
 * @param take called with the selected suggestion, or with null and the text if none was selected
 */
export function combobox(input, suggest, take) {
  const list = input.nextElementSibling;
  let suggestions = [];
  let active = -1;
  let timer = 0;
  let asked = null;

  function close() {
    clearTimeout(timer);
    asked?.abort();
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function choose(number) {
    const suggestion = suggestions[number];
    close();
    take(suggestion, input.value);
  }

  function activate(number) {
    list.children[active]?.setAttribute("aria-selected", "false");
    active = number;
    const option = list.children[active];
    if (!option) return input.removeAttribute("aria-activedescendant");
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", option.id);
  }

  function show() {
    list.replaceChildren(
      ...suggestions.map(({ label, hint }, number) =>
        element(
          "li",
          {
            id: `${list.id}-${number}`,
            role: "option",
            "aria-selected": "false",
            // Keeps the focus in the input.
            onpointerdown: (event) => event.preventDefault(),
            onclick: () => choose(number),
          },
          element("span", {}, label),
          hint && element("small", {}, hint),
        ),
      ),
    );
    active = -1;
    list.hidden = !suggestions.length;
    input.setAttribute("aria-expanded", String(!list.hidden));
    input.removeAttribute("aria-activedescendant");
  }

  async function ask() {
    asked?.abort();
    asked = new AbortController();
    const { signal } = asked;
    try {
      const found = await suggest(input.value.trim(), signal);
      if (signal.aborted) return;
      suggestions = found;
      show();
    } catch {
      if (signal.aborted) return;
      // The input still works as a text field.
      suggestions = [];
      show();
    }
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, WAIT_MILLISECONDS);
  });
  input.addEventListener("focus", () => {
    if (!input.value) timer = setTimeout(ask, WAIT_MILLISECONDS);
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) return void ask();
      const step = event.key === "ArrowDown" ? 1 : -1;
      activate((active + step + suggestions.length + (active < 0 && step < 0 ? 1 : 0)) % suggestions.length);
    } else if (event.key === "Enter" && !event.isComposing) {
      event.preventDefault();
      const same = suggestions.findIndex(({ label }) => label === input.value.trim());
      if (active >= 0 && !list.hidden) choose(active);
      else if (same >= 0) choose(same);
      else {
        close();
        take(null, input.value.trim());
      }
    } else if (event.key === "Escape") {
      if (!list.hidden) event.preventDefault();
      close();
    }
  });
}
