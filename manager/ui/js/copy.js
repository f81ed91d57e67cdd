// A text to be taken elsewhere, with a button that copies it.

import { h, icon, say } from "./dom.js";

/** Whether the area's text was copied; it is selected in any case, to be copied by hand. @param {HTMLTextAreaElement} area */
export async function copyText(area) {
	area.select();
	try {
		// Missing where the page comes by plain http from another machine.
		if (!navigator.clipboard) return document.execCommand("copy");
		await navigator.clipboard.writeText(area.value);
		return true;
	} catch {
		return false;
	}
}

/** @param {string} label @param {string} text @param {string} button */
export function copyBox(label, text, button) {
	const area = h("textarea", { readonly: true, rows: "4", "aria-label": label, spellcheck: "false" });
	area.value = text;
	const said = h("span", { class: "hint", role: "status" });

	async function copy() {
		say(said, (await copyText(area)) ? "Copied." : "Press Ctrl+C to copy.");
	}

	return h("div", { class: "taken" }, area, h("div", { class: "with" }, h("button", { type: "button", onclick: copy }, icon("copy"), button), said));
}
