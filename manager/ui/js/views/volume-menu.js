// A menu of actions that opens at a button: one for all rows, above everything, moved through with the arrow keys.

import { fill, h, set } from "../dom.js";

export function menu() {
	const element = h("div", { class: "menu", popover: "auto", role: "menu", onkeydown: onKey, ontoggle: onToggle });
	/** @type {Element | null} */
	let anchor = null;
	const hide = () => {
		if (element.matches(":popover-open")) element.hidePopover();
	};

	/** @param {any} event */
	function onToggle(event) {
		const isOpen = event.newState === "open";
		if (anchor) set(anchor, "aria-expanded", String(isOpen));
		if (isOpen) addEventListener("scroll", hide, { capture: true, once: true });
		else removeEventListener("scroll", hide, { capture: true });
	}

	/** @param {KeyboardEvent} event */
	function onKey(event) {
		const items = /** @type {HTMLElement[]} */ ([...element.children]);
		const now = items.indexOf(/** @type {HTMLElement} */ (document.activeElement));
		const next = { ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: -1 }[event.key];
		if (event.key === "Tab") {
			event.preventDefault();
			hide();
			return;
		}
		if (next === undefined) return;
		event.preventDefault();
		items.at(next % items.length)?.focus();
	}

	return {
		element,
		hide,
		/** @param {HTMLElement} at @param {string} label @param {import("../table.js").Action[]} actions */
		open(at, label, actions) {
			anchor = at;
			set(element, "aria-label", label);
			fill(
				element,
				actions.map((each) =>
					h(
						"button",
						{
							type: "button",
							role: "menuitem",
							class: each.class === "danger" ? "quiet bad" : "quiet",
							tabindex: "-1",
							"aria-disabled": each.why ? "true" : null,
							// The menu closes first: the button that opened it has the focus again when the dialog looks where to give it back to.
							onclick: () => {
								if (!each.why) {
									hide();
									each.run();
								}
							},
						},
						h("span", null, each.text),
						each.why && h("span", { class: "hint" }, each.why),
					)
				),
			);
			element.showPopover();
			const [from, own] = [at.getBoundingClientRect(), element.getBoundingClientRect()];
			const top = from.bottom + own.height + 8 > innerHeight ? Math.max(8, from.top - own.height - 4) : from.bottom + 4;
			element.style.setProperty("top", `${top}px`);
			element.style.setProperty("left", `${Math.max(8, Math.min(from.right - own.width, innerWidth - own.width - 8))}px`);
			/** @type {HTMLElement | null} */ (element.firstElementChild)?.focus();
		},
	};
}
