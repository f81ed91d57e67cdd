// Notices that go by themselves.

import { announce, h, icon } from "./dom.js";

/** A notice that goes by itself: 5 s when all is well, 15 s when not. Never while a dialog is open, for it would be inert.
 * @param {string} title @param {{detail?: string, isBad?: boolean}} [more] */
export function toast(title, { detail = "", isBad = false } = {}) {
	const close = h("button", { type: "button", class: "quiet", "aria-label": "Dismiss", onclick: () => made.remove() }, icon("close"));
	const made = h(
		"div",
		{ class: isBad ? "toast bad" : "toast" },
		icon(isBad ? "warning" : "healthy"),
		h("div", null, h("strong", null, title), detail && h("p", null, detail)),
		close,
	);
	document.getElementById("toasts")?.append(made);
	announce(detail ? `${title}. ${detail}` : title);
	const leave = () => setTimeout(() => (made.matches(":hover, :focus-within") ? leave() : made.remove()), isBad ? 15_000 : 5_000);
	leave();
}
