// Operations: what is being done now, with its steps and how to stop it, and what was done before.

import "../more.js";
import { call } from "../api.js";
import { fill, h, icon, keyed, say, set } from "../dom.js";
import { actorWords } from "../events.js";
import { ago, capital, count, moment, words } from "../format.js";
import { duration } from "../operations.js";
import { badge } from "../health.js";
import {
	hasProgress,
	isInFlight,
	OPERATION_KINDS,
	OPERATION_LOOKS,
	operationLook,
	operationTitle,
	progressBar,
	STEP_LOOKS,
	stepsOf,
	STUCK,
	whyNotCancel,
} from "../operations.js";
import { keepingFilters, opener } from "../opener.js";
import { paced } from "../pace.js";

import { address, here, put, replace } from "../router.js";
import { focusOnSlash, whileVisible } from "../habits.js";
import { may } from "../store.js";
import { heard, lookUp, subjectAddress, subjectName, subjectWord } from "../subjects.js";
import { buttons, table } from "../table.js";
import { operationsRead } from "../operations-read.js";

const LOOK_MS = 1_000;
const AGES_MS = 10_000;

/** @returns {import("../shell.js").View} */
export function view() {
	const search = h("input", {
		type: "search",
		placeholder: "Search name, kind, actor…",
		"aria-label": "Search operations",
		"aria-keyshortcuts": "/",
		oninput: () => put("q", search.value),
	});
	const state = h(
		"select",
		{ "aria-label": "State", onchange: () => put("state", state.value) },
		h("option", { value: "" }, "Every state"),
		Object.entries(OPERATION_LOOKS).map(([value, look]) => h("option", { value }, look.word)),
	);
	const kind = h(
		"select",
		{ "aria-label": "Kind", onchange: () => put("kind", kind.value) },
		h("option", { value: "" }, "Every kind"),
		OPERATION_KINDS.map((value) => h("option", { value }, capital(value.split(".").toReversed().join(" ")))),
	);
	const shown = h("span", { class: "hint", role: "status" });
	const flights = h("ul", { class: "flights" });
	const flying = h("section", { "aria-labelledby": "flights", hidden: true }, h("h2", { id: "flights" }, "In flight"), flights);
	const list = table({ label: "Operations", key: (operation) => operation.id, columns: columns() });
	const empty = h("div", { class: "empty", hidden: true });
	const older = h("button", {
		type: "button",
		onclick: () => {
			if (!isLoading) void read("older");
		},
	}, "Older");
	const card = h("div", { class: "card flush" }, list.element, empty);
	const element = h(
		"div",
		null,
		h(
			"div",
			{ class: "heading" },
			h("div", null, h("h1", null, "Operations"), h("p", { class: "hint" }, "Changes that take steps on hosts: each is done whole, or undone.")),
		),
		h("div", { class: "filters" }, search, state, kind, shown),
		flying,
		card,
		h("p", { class: "more" }, older),
	);

	let known = operationsRead("", "");
	let readKey = "?", failure = "", isLoading = false;
	/** @type {Set<string>} */
	const written = new Set();
	const reads = paced(LOOK_MS, async () => {
		const ids = [...written], mine = known;
		written.clear();
		try {
			await mine.again(ids);
		} catch {
			return;
		}
		if (mine !== known) return;
		draw();
		void lookUp(mine.all().map((each) => each.subject), draw);
	});
	const dialogs = opener("operations", async ([id, what]) => {
		const operation = await call("GET", `/v1/operations/${encodeURIComponent(id)}`);
		await lookUp([operation.subject], draw);
		if (!may("operator") || !["cancel", "retry"].includes(what)) {
			const { showOperation } = await import("../dialogs/operation.js");
			return () => showOperation(operation);
		}
		const turn = await import("../dialogs/operation-turn.js");
		return async () => {
			if (await (what === "cancel" ? turn.cancelOperation : turn.retryOperation)(operation)) {
				written.add(id);
				reads.ask();
			}
		};
	});
	const endSlash = focusOnSlash(search);
	const endAges = whileVisible(AGES_MS, draw);
	const endLooking = whileVisible(LOOK_MS, () => {
		const going = known.all().filter((each) => each.state === "running" && hasProgress(each));
		for (const each of going) written.add(each.id);
		if (going.length > 0) reads.ask();
	});

	/** @param {any} operation @param {string[]} more */
	const to = (operation, ...more) => address(["operations", operation.id, ...more], here().query);

	/** @param {any} operation */
	function subjectLink({ subject }) {
		const place = subjectAddress(subject);
		return [`${subjectWord(subject)} `, place ? h("a", { href: place }, subjectName(subject)) : subjectName(subject)];
	}

	/** @returns {import("../table.js").Column<any>[]} */
	function columns() {
		return [
			{
				id: "status",
				title: "State",
				sort: (o) => operationLook(o).rank,
				look: (o) => o.state,
				draw: (cell, o) => fill(cell, badge(operationLook(o))),
			},
			{
				id: "name",
				title: "Operation",
				isHead: true,
				sort: (o) => operationTitle(o),
				look: (o) => [o.kind, o.error?.detail],
				draw: (cell, o) =>
					fill(
						cell,
						h("a", { href: address(["operations", o.id]), class: "name", onclick: keepingFilters(() => to(o)) }, operationTitle(o)),
						o.error && h("p", { class: "reason" }, o.error.detail),
					),
			},
			{
				id: "subject",
				title: "Subject",
				sort: (o) => subjectName(o.subject),
				look: (o) => [subjectName(o.subject), subjectAddress(o.subject)],
				draw: (cell, o) => fill(cell, subjectLink(o)),
			},
			{
				id: "actor",
				title: "Actor",
				sort: (o) => actorWords(o.actor),
				look: (o) => o.actor,
				draw: (cell, o) => fill(cell, h("span", { title: o.actor }, actorWords(o.actor))),
			},
			{
				id: "begun",
				title: "Begun",
				sort: (o) => new Date(o.created_at).getTime(),
				look: (o) => ago(o.created_at),
				draw: (cell, o) => fill(cell, h("time", { datetime: o.created_at, title: moment(o.created_at) }, ago(o.created_at))),
			},
			{
				id: "took",
				title: "Took",
				sort: tookMs,
				look: tookMs,
				draw: (cell, o) => fill(cell, tookMs(o) < 1000 ? "< 1 s" : duration(tookMs(o) / 1000)),
			},
		];
	}

	/** @param {Element} element @param {any} operation */
	function drawFlight(element, operation) {
		const parts = /** @type {any} */ (element).stowageParts;
		const look = operationLook(operation);
		const link = parts.title;
		say(link, operationTitle(operation));
		set(link, "href", address(["operations", operation.id]));
		link.onclick = keepingFilters(() => to(operation));
		once(parts.state, look.word, () => badge(look));
		once(
			parts.about,
			[subjectName(operation.subject), subjectAddress(operation.subject), operation.actor, ago(operation.created_at)],
			() => [subjectLink(operation), h("span", { class: "hint" }, ` · ${actorWords(operation.actor)} · ${ago(operation.created_at)}`)],
		);
		parts.stuck.hidden = operation.state !== "stuck";
		parts.bar.update(operation);
		once(parts.steps, stepsOf(operation), () =>
			stepsOf(operation).map((/** @type {any} */ step) => {
				const { icon: name, word, tone } = STEP_LOOKS[step.state] ?? STEP_LOOKS.pending;
				return h("li", { class: tone, title: step.error }, icon(name), h("span", { class: "unseen" }, `${word}: `), words(step.name));
			}));
		const isStuck = operation.state === "stuck",
			why = whyNotCancel(operation),
			name = `${operationTitle(operation)} ${subjectName(operation.subject)}`;
		buttons(
			parts.does,
			!may("operator") ? [] : isStuck
				? [{
					id: "retry",
					label: `Try again: ${name}`,
					icon: "refresh",
					text: "Try again",
					class: "small",
					run: () => {
						location.hash = to(operation, "retry");
					},
				}]
				: [{
					id: "cancel",
					label: `Cancel: ${name}`,
					icon: "close",
					text: "Cancel",
					class: "small",
					why: why || undefined,
					run: () => {
						location.hash = to(operation, "cancel");
					},
				}],
		);
	}

	function makeFlight() {
		const parts = {
			title: h("a", { class: "name" }),
			state: h("span"),
			about: h("p"),
			stuck: h("p", { class: "hint" }, STUCK),
			bar: progressBar(),
			steps: h("ol", { class: "stops", "aria-label": "Steps" }),
			does: h("div"),
		};
		const element = h(
			"li",
			{ class: "card" },
			h("div", { class: "flight" }, h("div", null, h("p", null, parts.title, " ", parts.state), parts.about), parts.does),
			parts.steps,
			parts.bar.element,
			parts.stuck,
		);
		/** @type {any} */ (element).stowageParts = parts;
		return element;
	}

	function draw() {
		const { query } = here();
		const needle = (query.get("q") ?? "").toLowerCase();
		const all = known.all();
		const found = all.filter((o) =>
			!needle ||
			[operationTitle(o), o.kind, subjectName(o.subject), o.actor, o.id].some((word) => word.toLowerCase().includes(needle))
		);
		const now = found.filter(isInFlight), over = found.filter((o) => !isInFlight(o));
		flying.hidden = now.length === 0;
		keyed(flights, now, (o) => o.id, makeFlight, drawFlight);
		list.show(over);
		shown.textContent = needle ? `${found.length} of ${count(all.length, "operation")}` : now.length > 0 ? `${now.length} in flight` : "";
		older.hidden = !known.hasOlder() || failure !== "";
		set(older, "aria-disabled", isLoading ? "true" : null);
		say(older, isLoading ? "Reading…" : "Older");
		const isFiltered = Boolean(needle || query.get("state") || query.get("kind"));
		const reason = failure
			? `failure ${failure}`
			: over.length > 0
			? ""
			: isLoading
			? "loading"
			: now.length > 0
			? "flying"
			: isFiltered
			? "none"
			: "nothing";
		card.hidden = reason === "flying";
		list.element.hidden = over.length === 0;
		if (empty.dataset.of === reason) return;
		empty.dataset.of = reason;
		empty.hidden = reason === "";
		fill(
			empty,
			{
				"": null,
				flying: null,
				loading: h("p", { role: "status" }, "Reading the operations…"),
				nothing: [
					h("h2", null, "Nothing has been done yet"),
					h("p", null, "Adding a backend, making a volume or attaching it shows here, step by step."),
				],
				none: [
					h("h2", null, "No operation fits the filters"),
					h("button", {
						type: "button",
						onclick: () => {
							search.value = "";
							replace(["operations"]);
						},
					}, "Clear the filters"),
				],
			}[reason] ??
				[
					h("h2", null, "The operations could not be read"),
					h("p", { role: "alert" }, failure),
					h("button", { type: "button", onclick: () => read("first") }, "Try again"),
				],
		);
	}

	/** @param {"first" | "older"} what */
	async function read(what) {
		const mine = known;
		isLoading = true;
		failure = "";
		draw();
		try {
			await mine[what]();
		} catch (problem) {
			if (mine === known) failure = /** @type {Error} */ (problem).message;
		}
		if (mine !== known) return;
		isLoading = false;
		draw();
		void lookUp(known.all().map((o) => o.subject), draw);
	}

	return {
		title: "Operations",
		element,
		update(change) {
			if (change.event) heard(change.event);
			for (const id of change.operations ?? []) written.add(id);
			if (change.operations?.length) reads.ask();
			if (change.everything && readKey !== "?") void read("first");
			if (change.backends?.size) draw();
		},
		turn() {
			const { query } = here();
			const [wanted, of] = [query.get("state") ?? "", query.get("kind") ?? ""];
			state.value = wanted;
			kind.value = of;
			if (document.activeElement !== search) search.value = query.get("q") ?? "";
			const key = JSON.stringify([wanted, of]);
			if (readKey !== key) {
				readKey = key;
				known = operationsRead(wanted, of);
				void read("first");
			} else draw();
			dialogs.turn();
		},
		end() {
			endSlash();
			endAges();
			endLooking();
			reads.stop();
			dialogs.end();
		},
	};
}

/** The element shows what `make` gives, made anew when the look has changed. @param {any} element @param {unknown} look @param {() => import("../dom.js").Child} make */
function once(element, look, make) {
	const now = JSON.stringify(look);
	if (element.stowageLook === now) return;
	element.stowageLook = now;
	fill(element, make());
}

/** @param {any} operation */
function tookMs(operation) {
	return new Date(operation.updated_at).getTime() - new Date(operation.created_at).getTime();
}
