// Add host: a join token with its command, shown once, and then the host that has joined.

import { call } from "../api.js";
import { dialog } from "../dialog.js";
import { announce, fill, h, icon, say } from "../dom.js";
import { copyBox } from "../copy.js";
import { field } from "../form.js";
import { duration } from "../operations.js";
import { hostAddress } from "../subjects.js";
import { store, watch } from "../store.js";

/** @type {Record<string, number>} seconds of a unit */
const UNITS = { minutes: 60, hours: 3_600 };

/** @returns {Promise<any>} */
export async function joinHost() {
	for (;;) {
		const known = new Set(store.hosts.keys());
		const token = await askForToken();
		if (!token || !(await showCommand(token, known))) return undefined;
	}
}

/** @returns {Promise<{command: string, expires_at: string} | undefined>} */
function askForToken() {
	const unit = h("select", { "aria-label": "Unit" }, Object.keys(UNITS).map((each) => h("option", { value: each }, each)));
	const control = h("input", { type: "text", inputmode: "numeric", autocomplete: "off" });
	unit.value = "hours";
	control.value = "1";
	const ttl = field({
		pointer: "/ttl_s",
		title: "Valid for",
		hint: "From a second to 24 hours; a host that has joined stays, whatever becomes of the token",
		control,
		after: unit,
		read: () => {
			const text = control.value.trim();
			// What is no number goes to the API as it is, which says so.
			return /^\d{1,6}(\.\d+)?$/.test(text) ? Math.round(Number(text) * UNITS[unit.value]) : text;
		},
		write: (given) => {
			control.value = String(given ?? "");
		},
	});
	const body = () => ({ ttl_s: ttl.value() });
	return dialog({
		title: "Add host",
		body: [h("p", null, "A host joins with a token that is used once. The agent of Stowage must be installed on it."), ttl.element],
		submit: { label: "Make join token", busy: "Making the token…" },
		call: () => ({ method: "POST", path: "/v1/hosts/join_tokens", body: body() }),
		fields: () => [ttl],
		run: () => call("POST", "/v1/hosts/join_tokens", body()),
	}).open();
}

/**
 * Whether another token is wanted. known: the ids of the hosts that were there before.
 * @param {{command: string, expires_at: string}} token @param {Set<string>} known @returns {Promise<boolean>}
 */
async function showCommand(token, known) {
	const ends = new Date(token.expires_at).getTime();
	const left = h("p", { class: "hint", role: "timer", "aria-live": "off" });
	const state = h("div", { class: "awaited", role: "status" }, h("p", null, icon("pending"), "Waiting for a host to join…"));
	let isAnother = false, isOver = false;

	function count() {
		if (isOver) return;
		const seconds = (ends - Date.now()) / 1000;
		say(left, seconds > 0 ? `The token is valid for another ${duration(seconds)}.` : "The token has expired.");
		if (seconds > 0) return;
		end(
			h("p", null, icon("warning"), "No host has joined in time."),
			h("button", {
				type: "button",
				onclick: () => {
					isAnother = true;
					box.close();
				},
			}, "Make another token"),
		);
	}

	/** @param {...import("../dom.js").Child} words */
	function end(...words) {
		isOver = true;
		clearInterval(timer);
		fill(state, words);
	}

	// Tokens are not told apart by what the log says: whoever joins first while this is open is taken for the awaited one.
	function look() {
		const host = [...store.hosts.values()].find((each) => !known.has(each.id));
		if (!host || isOver) return;
		left.hidden = true;
		end(
			h(
				"p",
				{ class: "good" },
				icon("healthy"),
				h("span", null, h("a", { href: hostAddress(host) }, host.name), " has joined. It mounts and proves every backend that is for it."),
			),
		);
		announce(`${host.name} has joined`);
	}

	const box = dialog({
		title: "Join command",
		body: [
			h(
				"p",
				{ class: "banner fair" },
				icon("warning"),
				h("span", null, "This is shown once, and is for one host. Whoever has it can join as a host of this fleet until it is used or has expired."),
			),
			h("p", null, "Run this as root on the new host, and then ", h("code", null, "stowage-agent run"), "."),
			copyBox("Join command", token.command, "Copy command"),
			left,
			state,
		],
		cancel: "Done",
		onClose: () => {
			clearInterval(timer);
			stop();
		},
	});
	const timer = setInterval(count, 1_000);
	const stop = watch((change) => {
		if (change.everything || change.hosts) look();
	});
	count();
	look();
	await box.open();
	return isAnother;
}
