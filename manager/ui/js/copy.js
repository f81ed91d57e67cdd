// A text to be taken elsewhere, with a button that copies it.

import { h, icon, say } from "./dom.js";

/** @param {string} label @param {string} text @param {string} button */
export function copyBox(label, text, button) {
  const area = h("textarea", { readonly: true, rows: "4", "aria-label": label, spellcheck: "false" });
  area.value = text;
  const said = h("span", { class: "hint", role: "status" });

  async function copy() {
    area.select();
    let isCopied = false;
    try {
      // Missing where the page comes by plain http from another machine.
      if (navigator.clipboard) { await navigator.clipboard.writeText(text); isCopied = true; }
      else isCopied = document.execCommand("copy");
    } catch { /* Selected as it is, it can be copied by hand. */ }
    say(said, isCopied ? "Copied." : "Press Ctrl+C to copy.");
  }

  return h("div", { class: "taken" }, area, h("div", { class: "with" }, h("button", { type: "button", onclick: copy }, icon("copy"), button), said));
}
