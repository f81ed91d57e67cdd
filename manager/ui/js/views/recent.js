// What happened last, beside the matrix.

import { call } from "../api.js";
import { fill, h, icon } from "../dom.js";
import { eventWords, TONE_ICONS } from "../events.js";
import { ago } from "../format.js";
import { address } from "../router.js";

const RECENT = 3;

/** Fills the card; what it returns takes the store's changes. @param {Element} card @returns {(change: import("../store.js").Change) => void} */
export function fillRecent(card) {
	const list = h("ul", null, h("li", { class: "hint" }, "Loading…"));
	card.append(list, h("p", null, h("a", { href: address(["activity"]) }, "The whole log")));
	/** @type {any[]} */
	let events = [];

	async function read() {
		try {
			take((await call("GET", `/v1/events?order=desc&limit=${RECENT}`)).items);
		} catch {
			if (events.length === 0) fill(list, h("li", { class: "hint" }, "The log could not be read"));
		}
	}

	/** @param {any[]} found */
	function take(found) {
		const bySequence = new Map([...events, ...found].map((each) => [Number(each.sequence), each]));
		events = [...bySequence.keys()].sort((a, b) => b - a).slice(0, RECENT).map((sequence) => bySequence.get(sequence));
		draw();
	}

	function draw() {
		const lines = events.map((event) => {
			const { words, tone } = eventWords(event);
			const said = h("p", null, h("strong", null, event.data.name ?? ""), ` ${words}`);
			return h(
				"li",
				null,
				icon(TONE_ICONS[tone]),
				h("div", { class: tone }, said, h("p", { class: "hint" }, `${ago(event.time)} · ${event.type} · ${event.actor}`)),
			);
		});
		fill(list, lines.length > 0 ? lines : h("li", { class: "hint" }, "Nothing has happened yet"));
	}

	void read();
	return (change) => {
		if (change.everything) void read();
		else if (change.event) take([change.event]);
		else if (events.length > 0) draw();
	};
}
