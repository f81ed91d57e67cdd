// One event of the log: who, when, on what, and what was before and after it.

import { part } from "../api.js";
import { dialog, facts } from "../dialog.js";
import { h, icon } from "../dom.js";
import { comparison } from "../compare.js";
import { actorWords, eventWords } from "../events.js";
import { ago, capital, count, moment, words } from "../format.js";
import { address } from "../router.js";
import { subjectAddress, subjectWord } from "../subjects.js";

/** Fields of the data that stand elsewhere in the dialog. */
const ELSEWHERE = new Set(["name", "before", "after"]);

/** @param {any} event @returns {Promise<any>} */
export function showEvent(event) {
	const { data } = event;
	const name = data.name ?? "", to = subjectAddress(event.subject, name);
	const compared = comparison(data.before, data.after);
	// What differs stands on top.
	const lines = [...compared.filter((each) => each.turn !== "same"), ...compared.filter((each) => each.turn === "same")];
	const changed = lines.filter((each) => each.turn !== "same").length;
	const more = Object.entries(data).filter(([key]) => !ELSEWHERE.has(key)).map((
		[key, value],
	) => /** @type {[string, any]} */ ([capital(words(key)), shown(value)]));
	return dialog({
		title: `Event ${event.sequence}`,
		body: [
			h("p", null, h("strong", null, name), ` ${eventWords(event).words}`),
			facts([
				["Time", `${moment(event.time)}, ${ago(event.time)}`],
				["Type", h("code", null, event.type)],
				["Subject", [
					`${subjectWord(event.subject)} `,
					to ? h("a", { href: to }, name) : name,
					" · ",
					h("a", { href: address(["activity"], { subject: event.subject }) }, `everything about ${name || "it"}`),
				]],
				["Actor", [actorWords(event.actor), " ", h("code", null, event.actor)]],
				["Request", event.requestid ? h("code", null, event.requestid) : "none"],
				...more,
			]),
			lines.length > 0 &&
			h(
				"section",
				{ "aria-labelledby": "compared" },
				h(
					"h3",
					{ id: "compared" },
					data.before && data.after
						? `Before and after: ${changed === 0 ? "nothing differs" : count(changed, "field differs", "fields differ")}`
						: data.before
						? "What was"
						: "What is",
				),
				h(
					"div",
					{ class: "scroll", tabindex: "0", role: "region", "aria-label": "Before and after" },
					h(
						"table",
						{ class: "compared", "aria-label": "Before and after" },
						h(
							"thead",
							null,
							h("tr", null, ["Field", "Before", "After"].map((title) => h("th", { scope: "col" }, title))),
						),
						h("tbody", null, lines.map((line) => row(line, Boolean(data.before && data.after)))),
					),
				),
			),
			h(
				"details",
				null,
				h("summary", null, "Seal"),
				facts([
					["Sequence", event.sequence],
					["Hash", h("code", null, event.hash)],
					["Hash before", h("code", null, event.prevhash)],
					["Id", h("code", null, event.id)],
					["Source", h("code", null, event.source)],
				]),
			),
		],
		call: () => ({ method: "GET", path: `/v1/events?subject=${part(event.subject)}&order=desc` }),
	}).open();
}

/** @param {import("../compare.js").Line} line @param {boolean} isMarked whether there are two sides that can differ */
function row(line, isMarked) {
	const isChanged = isMarked && line.turn !== "same";
	return h(
		"tr",
		{ class: isChanged ? "differs" : null },
		h("th", { scope: "row" }, isChanged && [icon("edit"), h("span", { class: "unseen" }, `${line.turn}: `)], line.path),
		h("td", null, isChanged && line.before !== undefined ? h("del", null, shown(line.before)) : shown(line.before)),
		h("td", null, isChanged && line.after !== undefined ? h("ins", null, shown(line.after)) : shown(line.after)),
	);
}

/** @param {any} value */
function shown(value) {
	if (value === undefined) return "—";
	if (value === null) return h("span", { class: "hint" }, "null");
	if (value === "") return h("span", { class: "hint" }, "empty");
	if (Array.isArray(value) && value.every((each) => typeof each === "string" || typeof each === "number")) {
		return value.join(", ") || h("span", { class: "hint" }, "none");
	}
	if (typeof value === "object") return h("code", null, JSON.stringify(value));
	return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}
