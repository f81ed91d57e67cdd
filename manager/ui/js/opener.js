// Dialogs with addresses: the one that the address names is open, and the address goes back to the view when it closes.

import { toast } from "./toast.js";
import { here, replace } from "./router.js";

/**
 * `turn` is called when the address has changed, `end` when the view goes.
 * @param {string} page
 * @param {(path: string[]) => Promise<() => any>} load  gives what opens the dialog of the path; it rejects with words for one that is none
 * @param {(path: string[]) => string[]} parentOf  the path of the dialog that one comes back to
 */
export function opener(page, load, parentOf = () => []) {
	// No path yet: the first turn closes what another view has left open.
	let opened = "";

	/** @param {string} key @param {string[]} path */
	async function open(key, path) {
		const isWanted = () => opened === key && here().page === page;
		const main = document.getElementById("main");
		/** @type {string[]} */
		let back = [];
		try {
			// An inspection logs in to a target for it, which takes seconds.
			main?.setAttribute("aria-busy", "true");
			const show = await load(path).finally(() => main?.removeAttribute("aria-busy"));
			if (isWanted()) {
				await show();
				back = parentOf(path);
			}
		} catch (error) {
			if (isWanted()) toast("This could not be opened", { detail: /** @type {Error} */ (error).message, isBad: true });
		}
		if (!isWanted()) return;
		opened = "[]";
		replace([page, ...back], here().query);
	}

	return {
		turn() {
			const { path } = here();
			const key = JSON.stringify(path);
			if (opened === key) return;
			opened = key;
			closePresent();
			if (path.length > 0) void open(key, path);
		},
		end() {
			opened = "";
			closePresent();
		},
	};
}

function closePresent() {
	for (const present of document.querySelectorAll("dialog[open]")) /** @type {any} */ (present).stowageClose?.();
}

/** A link to a dialog of the view: it keeps the filters that are set when it is followed. @param {() => string} to */
export function keepingFilters(to) {
	return (/** @type {MouseEvent} */ event) => {
		if (event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
		event.preventDefault();
		location.hash = to();
	};
}
