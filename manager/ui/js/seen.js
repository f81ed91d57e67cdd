// What a host saw of a backend, as lines: how it stands, how long it took, what is wrong and what to do about it.

import { h } from "./dom.js";
import { milliseconds, words } from "./format.js";
import { badge, cellLook } from "./health.js";

/**
 * @param {any} seen an observation, a cell or a probe
 * @param {{lead?: import("./dom.js").Child, when?: string, remedy?: string | null}} [more] lead: before the badge. when: of the observation
 */
export function seenLines(seen, { lead, when, remedy = seen.remedy } = {}) {
	const isTimed = seen.latency_ms !== null && seen.latency_ms !== undefined;
	return [
		h(
			"p",
			null,
			lead,
			" ",
			badge(cellLook(seen)),
			isTimed && h("span", { class: "hint" }, ` ${milliseconds(seen.latency_ms)}`),
			when && h("span", { class: "hint" }, ` ${when}`),
		),
		(seen.code || seen.detail) && h("p", null, seen.code && h("span", { class: "code" }, words(seen.code)), seen.detail && ` ${seen.detail}`),
		remedy && h("p", { class: "remedy" }, remedy),
	];
}
