// Activity: the audit log, the newest first, and whether nobody has altered it.

import "../more.js";
import { announce, fill, h, icon, say, set } from "../dom.js";
import { actorWords, eventWords, TONE_ICONS } from "../events.js";
import { ago, capital, count, moment, words } from "../format.js";
import { EVENT_TYPES, eventAt, reading } from "../log.js";
import { keepingFilters, opener } from "../opener.js";
import { paced } from "../pace.js";

import { address, here, put, replace } from "../router.js";
import { focusOnSlash, whileVisible } from "../habits.js";
import { liveHosts, store } from "../store.js";
import { heard, lookUp, subjectAddress, subjectName, subjectOf, subjectWord } from "../subjects.js";
import { table } from "../table.js";
import { chain } from "./chain.js";

const AGES_MS = 10_000;
const REDRAW_MS = 300;
/** Who has scrolled further down than this is reading, and nothing may move under his eyes. */
const READING_PX = 40;
const FILTERS = /** @type {const} */ (["subject", "type", "actor", "since"]);

/** @returns {import("../shell.js").View} */
export function view() {
	const names = h("datalist", { id: "subjects" }), actors = h("datalist", { id: "actors" });
	const subject = h("input", {
		type: "search",
		list: "subjects",
		placeholder: "Backend, host, volume or image",
		"aria-label": "Name",
		"aria-keyshortcuts": "/",
		"aria-describedby": "subject-error",
		onchange: chooseSubject,
	});
	const wrong = h("p", { class: "error", id: "subject-error", role: "alert", hidden: true });
	const type = h(
		"select",
		{ "aria-label": "Type", onchange: () => put("type", type.value) },
		h("option", { value: "" }, "Every type"),
		EVENT_TYPES.map((each) => h("option", { value: each }, capital(words(each.replace(".", " "))))),
	);
	const actor = h("input", {
		type: "text",
		list: "actors",
		placeholder: "Actor, such as token:admin",
		"aria-label": "Actor",
		autocomplete: "off",
		spellcheck: "false",
		onchange: () => put("actor", actor.value.trim()),
	});
	const since = h("input", { type: "datetime-local", onchange: chooseSince });
	const clear = h("button", {
		type: "button",
		class: "quiet",
		onclick: () => {
			subject.value = "";
			replace(["activity"]);
		},
	}, "Clear the filters");
	const verified = chain();
	const list = table({ label: "Activity", key: (event) => event.sequence, columns: columns() });
	const empty = h("div", { class: "empty", hidden: true });
	const fresh = h("button", { type: "button", class: "main fresh", hidden: true, onclick: showHeld });
	const older = h("button", {
		type: "button",
		onclick: () => {
			if (!isLoading) void readOlder();
		},
	}, "Older");
	const end = h("p", { class: "hint more" }, older);
	const element = h(
		"div",
		null,
		h(
			"div",
			{ class: "heading" },
			h("div", null, h("h1", null, "Activity"), h("p", { class: "hint" }, "Every change, by whom, sealed in a chain.")),
			h("div", { class: "actions" }, verified.element),
		),
		verified.banner,
		h("div", { class: "filters" }, subject, type, actor, h("label", { class: "since" }, "Since", since), clear, names, actors),
		wrong,
		h("div", { class: "fresh-place" }, fresh),
		h("div", { class: "card flush" }, list.element, empty),
		end,
	);

	/** The events as they were when the reader scrolled away from the newest. @type {Set<string>} */
	const held = new Set();
	let log = reading({ subject: "", type: "", actor: "", since: "" });
	let readKey = "", isLoading = false, failure = "", typedSince = "";
	const draws = paced(REDRAW_MS, async () => draw());
	const dialogs = opener("activity", async ([sequence]) => {
		const { showEvent } = await import("../dialogs/event.js");
		const known = log.events().find((each) => each.sequence === sequence);
		const event = known ?? (/^\d{1,15}$/.test(sequence) ? await eventAt(Number(sequence), () => here().path[0] === sequence) : null);
		if (!event) throw new Error(`There is no event ${sequence}.`);
		return () => showEvent(event);
	});
	const endSlash = focusOnSlash(subject);
	const endAges = whileVisible(AGES_MS, draw);
	addEventListener("scroll", onScroll, { passive: true });

	/** @returns {import("../table.js").Column<any>[]} */
	function columns() {
		return [
			{
				id: "time",
				title: "Time",
				look: (event) => ago(event.time),
				draw: (cell, event) => fill(cell, h("time", { datetime: event.time, title: moment(event.time) }, ago(event.time))),
			},
			{
				id: "name",
				title: "What",
				isHead: true,
				look: () => "",
				draw: (cell, event) => {
					const { words: said, tone } = eventWords(event);
					const to = () => address(["activity", event.sequence], here().query);
					fill(
						cell,
						h(
							"div",
							{ class: `event ${tone}` },
							icon(TONE_ICONS[tone]),
							h(
								"p",
								null,
								h("strong", null, event.data.name ?? ""),
								" ",
								h("a", { href: address(["activity", event.sequence]), onclick: keepingFilters(to) }, said),
							),
						),
					);
				},
			},
			{ id: "type", title: "Type", look: () => "", draw: (cell, event) => fill(cell, h("code", null, event.type)) },
			{ id: "actor", title: "Actor", look: () => "", draw: (cell, event) => fill(cell, h("span", { title: event.actor }, actorWords(event.actor))) },
			{
				id: "subject",
				title: "Subject",
				look: (event) => subjectAddress(event.subject, event.data.name),
				draw: (cell, event) => {
					const name = event.data.name ?? subjectName(event.subject);
					fill(
						cell,
						`${subjectWord(event.subject)} `,
						h("a", { href: subjectAddress(event.subject, name) ?? address(["activity"], { subject: event.subject }) }, name),
					);
				},
			},
			{
				id: "request",
				title: "Request",
				look: () => "",
				draw: (cell, event) => fill(cell, event.requestid ? h("code", { title: event.requestid }, event.requestid.slice(-12)) : "—"),
			},
		];
	}

	/** @returns {import("../log.js").Filters} */
	function filters() {
		const { query } = here();
		return { subject: query.get("subject") ?? "", type: query.get("type") ?? "", actor: query.get("actor") ?? "", since: query.get("since") ?? "" };
	}

	async function chooseSubject() {
		const text = subject.value.trim();
		if (!text) {
			tell("");
			put("subject", "");
			return;
		}
		try {
			const found = await subjectOf(text);
			tell(found ? "" : `There is no backend, host, volume or image ${text} now. Of what is gone, any event leads to the others.`);
			if (found) put("subject", found);
		} catch (problem) {
			tell(/** @type {Error} */ (problem).message);
		}
	}

	function chooseSince() {
		const at = new Date(since.value);
		// A year that is typed digit by digit begins as one of long ago.
		if (since.value && !(at.getFullYear() >= 1970)) return;
		typedSince = since.value ? at.toISOString() : "";
		put("since", typedSince);
	}

	/** @param {string} words */
	function tell(words) {
		wrong.hidden = !words;
		say(wrong, words);
		set(subject, "aria-invalid", words ? "true" : null);
	}

	function drawFilters() {
		const now = filters();
		if (document.activeElement !== subject || now.subject) {
			subject.value = now.subject ? `${subjectWord(now.subject)} ${subjectName(now.subject)}` : "";
		}
		if (now.subject) {
			tell("");
			void lookUp([now.subject], () => {
				if (filters().subject === now.subject) subject.value = `${subjectWord(now.subject)} ${subjectName(now.subject)}`;
			});
		}
		type.value = now.type;
		if (actor.value.trim() !== now.actor) actor.value = now.actor;
		// What is being typed here stands in the address by now; written back it would jump.
		if (now.since !== typedSince) since.value = localTime(now.since);
		typedSince = now.since;
		clear.hidden = !FILTERS.some((each) => now[each]);
	}

	/** What may be typed as a name: an open list of suggestions is left alone while it is the same. */
	function drawNames() {
		const values = [...[...store.backends.values()].map((each) => `backend ${each.name}`), ...liveHosts().map((each) => `host ${each.name}`)];
		if (names.dataset.of === values.join()) return;
		names.dataset.of = values.join();
		fill(names, values.map((value) => h("option", { value })));
	}

	/** The first page under the filters of the address, in the place of what was read under others. */
	async function begin() {
		const wanted = filters();
		readKey = JSON.stringify(wanted);
		log = reading(wanted);
		held.clear();
		await readOlder();
	}

	async function readOlder() {
		const mine = log;
		isLoading = true;
		failure = "";
		draw();
		try {
			await mine.older();
		} catch (problem) {
			if (mine === log) failure = /** @type {Error} */ (problem).message;
		}
		if (mine !== log) return;
		isLoading = false;
		draw();
	}

	async function catchUp() {
		const mine = log, before = new Set(log.events().map((each) => each.sequence));
		try {
			await mine.catchUp();
		} catch {
			return;
		}
		if (mine !== log) return;
		if (isReading()) { for (const each of log.events()) if (!before.has(each.sequence)) held.add(each.sequence); }
		draw();
	}

	function isReading() {
		return scrollY > READING_PX;
	}

	function onScroll() {
		if (held.size > 0 && !isReading()) showHeld();
	}

	function showHeld() {
		held.clear();
		draw();
		// The button that was pressed is hidden now.
		if (!document.activeElement?.matches("a, input, select")) list.element.focus({ preventScroll: true });
		scrollTo({ top: 0 });
	}

	function draw() {
		const events = log.events(), seen = events.filter((each) => !held.has(each.sequence));
		list.show(seen);
		for (const each of new Set(events.map((event) => event.actor))) {
			if (![...actors.children].some((option) => /** @type {any} */ (option).value === each)) actors.append(h("option", { value: each }));
		}
		fresh.hidden = held.size === 0;
		if (held.size > 0) say(fresh, count(held.size, "new event"));
		const isNone = seen.length === 0;
		list.element.hidden = isNone;
		older.hidden = isNone || !log.hasOlder();
		set(older, "aria-disabled", isLoading ? "true" : null);
		set(older, "aria-busy", isLoading ? "true" : null);
		say(older, isLoading ? "Reading…" : failure ? "Try again" : "Older");
		if (end.lastChild === older && !isNone) end.append(h("span"));
		if (end.lastElementChild !== older && end.lastElementChild) {
			say(end.lastElementChild, failure && !isNone ? ` ${failure}` : isNone || log.hasOlder() ? "" : "This is the beginning.");
		}
		const reason = !isNone ? "" : failure ? `failure ${failure}` : isLoading ? "loading" : clear.hidden ? "nothing" : "none";
		if (empty.dataset.of === reason) return;
		empty.dataset.of = reason;
		empty.hidden = reason === "";
		fill(
			empty,
			{
				"": null,
				loading: h("p", { role: "status" }, "Reading the log…"),
				nothing: [
					h("h2", null, "Nothing has happened yet"),
					h("p", null, "Whatever is added, changed or removed is told here, and cannot be taken back from the log."),
				],
				none: h("h2", null, "No event fits the filters"),
			}[reason] ?? [
				h("h2", null, "The log could not be read"),
				h("p", { role: "alert" }, failure),
				h("button", {
					type: "button",
					onclick: () => {
						failure = "";
						void begin();
					},
				}, "Try again"),
			],
		);
	}

	return {
		title: "Activity",
		element,
		update(change) {
			if (change.event) {
				heard(change.event);
				verified.grown();
				if (log.add(change.event)) {
					if (isReading()) {
						held.add(change.event.sequence);
						if (held.size === 1) announce("There are new events");
					}
					draws.ask();
				}
			}
			if (change.everything && readKey) void catchUp();
			if (change.everything || change.backends?.size || change.hosts?.size) drawNames();
		},
		turn() {
			drawFilters();
			if (readKey !== JSON.stringify(filters())) void begin();
			dialogs.turn();
		},
		end() {
			endSlash();
			endAges();
			draws.stop();
			removeEventListener("scroll", onScroll);
			dialogs.end();
		},
	};
}

/** As a field for local time takes it; empty for what is no time. @param {string} time */
function localTime(time) {
	const at = new Date(time);
	if (!time || Number.isNaN(at.getTime())) return "";
	return new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}
