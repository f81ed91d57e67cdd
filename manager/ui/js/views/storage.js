// Storage: tiles, every backend in one table, the matrix, and what happened last. The dialogs come when they are opened.

import { call } from "../api.js";
import { announce, fill, h, icon, say, set } from "../dom.js";
import { toast } from "../toast.js";
import { ago, bytes, count, words } from "../format.js";
import { badge, lookOf, needsAttention, reasonOf, STATUSES, statusOf } from "../health.js";

import { address, here, put, replace } from "../router.js";
import { focusOnSlash, whileVisible } from "../habits.js";
import { kindOf, liveHosts, may, refOf, store } from "../store.js";
import { buttons, table } from "../table.js";
import { matrix } from "./matrix.js";

/** Fetched with the first history there is to draw. @type {typeof import("../spark.js").sparkline | null} */
let sparkline = null;

/** Shares of the total above which a bar turns amber and red, as in the faults of hosts. */
const [FAIR, BAD] = [0.85, 0.95];
/** How often "5 min. ago" is said anew. */
const AGES_MS = 10_000;

/** @returns {import("../shell.js").View} */
export function view() {
	const refresh = h("button", { type: "button", onclick: probeAll }, icon("refresh"), "Refresh");
	const add = h("button", { type: "button", class: "main", onclick: () => open("add") }, icon("add"), "Add backend");
	const tiles = ["Backends", "Need attention", "Used", "Live volumes"].map((title) =>
		h("section", { class: "tile", "aria-label": title }, h("h2", null, title), h("p", { class: "figure" }, "–"), h("p", { class: "hint" }))
	);
	const search = h("input", {
		type: "search",
		placeholder: "Search name, kind, label…",
		"aria-label": "Search backends",
		"aria-keyshortcuts": "/",
		oninput: () => put("q", search.value),
	});
	const kind = h("select", { "aria-label": "Kind", onchange: () => put("kind", kind.value) });
	const status = h(
		"select",
		{ "aria-label": "Status", onchange: () => put("status", status.value) },
		h("option", { value: "" }, "Every status"),
		STATUSES.map((each) => h("option", { value: each.value }, each.word)),
	);
	const shown = h("span", { class: "hint", role: "status" });
	const list = table({ label: "Storage backends", key: (backend) => backend.id, columns: columns(), sort: "status" });
	const empty = h("div", { class: "empty", hidden: true });
	const grid = matrix();
	const recent = h("section", { class: "card recent", "aria-labelledby": "recent" }, h("h2", { id: "recent" }, "Activity"));
	/** What happened last; fetched when there is nothing more urgent to paint. @type {((change: import("../store.js").Change) => void) | null} */
	let updateRecent = null;
	let isOver = false;

	const element = h(
		"div",
		null,
		h(
			"div",
			{ class: "heading" },
			h("div", null, h("h1", null, "Storage"), h("p", { class: "hint" }, "Where guests' disks live.")),
			h("div", { class: "actions" }, may("operator") && refresh, may("operator") && add),
		),
		h("div", { class: "tiles" }, tiles),
		h("div", { class: "filters" }, search, kind, status, shown),
		h("div", { class: "card flush" }, list.element, empty),
		h("div", { class: "below" }, grid.element, recent),
	);

	const forget = focusOnSlash(search);
	const seen = new IntersectionObserver(async ([at]) => {
		if (!at.isIntersecting) return;
		seen.disconnect();
		try {
			updateRecent = (await import("./recent.js")).fillRecent(recent);
		} catch {
			recent.append(h("p", { class: "hint" }, "The log could not be read"));
		}
	});
	seen.observe(recent);
	/** Fetched when the address first names a dialog. @type {ReturnType<typeof import("../opener.js").opener> | null} */
	let dialogs = null;
	const endAging = whileVisible(AGES_MS, () => updateRecent?.({}));

	/** A name leads to its backend with the filters that are set when it is followed. @param {MouseEvent} event @param {string} ref */
	function follow(event, ref) {
		if (event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
		event.preventDefault();
		open(ref);
	}

	/** The dialog of that address: `#/storage/NAME/edit`. Back closes it. @param {...string} path */
	function open(...path) {
		location.hash = address(["storage", ...path], here().query);
	}

	/** @returns {import("../table.js").Column<any>[]} */
	function columns() {
		return [
			{
				id: "status",
				title: "Status",
				sort: (b) => lookOf(b).rank,
				look: (b) => statusOf(b),
				draw: (cell, b) => {
					const shown = badge(lookOf(b));
					// Said when it is asked for: it ages, and a title that is kept true would change every row every second.
					shown.onpointerenter = () => set(shown, "title", `since ${ago(store.backends.get(b.id)?.health.since)}`);
					fill(cell, shown);
				},
			},
			{
				id: "name",
				title: "Name",
				isHead: true,
				sort: (b) => b.name,
				look: (b) => [b.name, reasonOf(b), b.state, b.labels],
				draw: (cell, b) =>
					fill(
						cell,
						h("a", {
							href: address(["storage", refOf(b)]),
							class: "name",
							onclick: (/** @type {MouseEvent} */ event) => follow(event, refOf(b)),
						}, b.name),
						b.state === "draining" && h("span", { class: "chip" }, "draining"),
						reasonOf(b) && h("p", { class: "reason" }, reasonOf(b)),
						Object.keys(b.labels).length > 0 &&
							h(
								"p",
								{ class: "chips" },
								Object.entries(b.labels).map(([key, value]) => h("span", { class: "chip quiet" }, value ? `${key}: ${value}` : key)),
							),
					),
			},
			{
				id: "kind",
				title: "Kind",
				sort: (b) => kindOf(b.kind).title,
				look: (b) => [b.kind, b.capabilities],
				draw: (cell, b) =>
					fill(
						cell,
						h(
							"div",
							{ class: "chips" },
							h("span", { class: "chip" }, kindOf(b.kind).title),
							b.capabilities.includes("external") && h("span", { class: "chip outside" }, "external"),
						),
					),
			},
			{
				id: "capabilities",
				title: "Capabilities",
				look: (b) => b.capabilities,
				draw: (cell, b) => {
					const can = b.capabilities.filter((/** @type {string} */ each) => each !== "external");
					fill(
						cell,
						h(
							"div",
							{ class: "chips" },
							can.length ? can.map((/** @type {string} */ each) => h("span", { class: "chip quiet" }, words(each).replaceAll(" ", "-"))) : "—",
						),
					);
				},
			},
			{
				id: "capacity",
				title: "Capacity · 24 h",
				sort: (b) => (b.capacity ? b.capacity.used_bytes / (b.capacity.total_bytes || 1) : -1),
				look: (
					b,
				) => [
					sparkline !== null,
					b.capacity?.used_bytes,
					b.capacity?.total_bytes,
					store.trends.get(b.id)?.samples.at(-1),
					store.trends.get(b.id)?.full_in_days,
				],
				draw: (cell, b) => fill(cell, capacity(b)),
			},
			{
				id: "default",
				title: "Default",
				look: (b) => b.is_default,
				draw: (cell, b) => fill(cell, b.is_default ? h("span", { class: "badge good" }, icon("star"), "Default") : "—"),
			},
			{
				id: "actions",
				title: "Actions",
				look: (b) => [b.state, b.is_default, b.live_volumes, b.name, may("operator")],
				draw: (cell, b) => buttons(cell, may("operator") ? actions(b) : []),
			},
		];
	}

	/** @param {any} b @returns {import("../table.js").Action[]} */
	function actions(b) {
		const busy = b.state === "creating"
			? "it is being added"
			: b.state === "deleting"
			? "it is being removed"
			: b.state === "stuck"
			? "an operation is stuck on it: look at Operations"
			: undefined;
		const found = [
			{ id: "edit", label: `Edit ${b.name}`, icon: /** @type {const} */ ("edit"), why: busy, run: () => open(refOf(b), "edit") },
			{
				id: "remove",
				label: `Remove ${b.name}`,
				icon: /** @type {const} */ ("remove"),
				run: () => open(refOf(b), "remove"),
				why: busy ?? (b.is_default ? "it is the default; make another backend the default first" : undefined),
			},
		];
		const first = {
			id: "initialize",
			label: `Initialize ${b.name}`,
			icon: /** @type {const} */ ("initialize"),
			text: "Initialize",
			class: "main small",
			run: () => open(refOf(b), "initialize"),
		};
		return b.state === "needs_initialization" ? [first, ...found] : found;
	}

	function drawTable() {
		const { query } = here();
		const needle = (query.get("q") ?? "").toLowerCase();
		const backends = [...store.backends.values()];
		const found = backends.filter((b) =>
			(!query.get("kind") || b.kind === query.get("kind")) && (!query.get("status") || statusOf(b) === query.get("status")) &&
			(!needle ||
				[b.name, kindOf(b.kind).title, b.kind, ...Object.entries(b.labels).flat(), ...Object.values(b.config)].some((word) =>
					String(word).toLowerCase().includes(needle)
				))
		);
		list.show(found);
		const isEmpty = backends.length === 0, isNone = !isEmpty && found.length === 0;
		list.element.hidden = isEmpty || isNone;
		if (empty.hidden !== !(isEmpty || isNone) || empty.dataset.of !== String(isEmpty)) {
			empty.hidden = !(isEmpty || isNone);
			empty.dataset.of = String(isEmpty);
			fill(
				empty,
				isEmpty
					? [
						h("h2", null, "No storage yet"),
						h("p", null, "Register a folder, an NFS export, an SMB share or a LUN once, and every host mounts and proves it."),
						may("operator")
							? h(
								"button",
								{
									type: "button",
									class: "main",
									onclick: () => open("add"),
								},
								icon("add"),
								"Add the first backend",
							)
							: h("p", { class: "hint" }, "An operator can add one."),
					]
					: [
						h("h2", null, "Nothing matches"),
						h("p", null, "No backend fits the search and the filters."),
						h("button", { type: "button", onclick: () => replace(["storage"], new URLSearchParams()) }, "Clear them"),
					],
			);
		}
		say(shown, found.length === backends.length ? "" : `${found.length} of ${backends.length} shown`);
	}

	function drawTiles() {
		const backends = [...store.backends.values()];
		const odd = backends.filter(needsAttention);
		const known = backends.filter((b) => b.capacity);
		const used = known.reduce((sum, b) => sum + b.capacity.used_bytes, 0), total = known.reduce((sum, b) => sum + b.capacity.total_bytes, 0);
		/** @type {Map<string, number>} */
		const kinds = new Map();
		for (const b of odd) kinds.set(lookOf(b).word.toLowerCase(), (kinds.get(lookOf(b).word.toLowerCase()) ?? 0) + 1);
		const online = liveHosts().filter((host) => host.state === "online").length;
		const figures = [
			[String(backends.length), `${backends.filter((b) => statusOf(b) === "healthy").length} healthy`],
			[String(odd.length), [...kinds].map(([word, n]) => `${n} ${word}`).join(", ") || "all is well"],
			[known.length ? bytes(used) : "–", known.length ? `of ${bytes(total)}` : "no figures yet"],
			[String(backends.reduce((sum, b) => sum + b.live_volumes, 0)), `on ${count(liveHosts().length, "host")}, ${online} online`],
		];
		tiles.forEach((tile, n) => {
			say(tile.children[1], figures[n][0]);
			say(tile.children[2], figures[n][1]);
		});
		set(tiles[1], "class", odd.length ? "tile bad" : "tile");
	}

	function drawFilters() {
		const { query } = here();
		if (kind.options.length !== store.kinds.length + 1) {
			fill(kind, h("option", { value: "" }, "Every kind"), store.kinds.map((each) => h("option", { value: each.kind }, each.title)));
		}
		kind.value = query.get("kind") ?? "";
		status.value = query.get("status") ?? "";
		if (document.activeElement !== search) search.value = query.get("q") ?? "";
	}

	async function probeAll() {
		if (refresh.getAttribute("aria-disabled")) return;
		set(refresh, "aria-busy", "true");
		set(refresh, "aria-disabled", "true");
		try {
			// At least a blink of it, or nobody sees that something was done.
			await Promise.all([call("POST", "/v1/storage_backends/probe"), new Promise((resolve) => setTimeout(resolve, 300))]);
			announce("Every backend was probed");
			toast("Every backend was probed");
		} catch (problem) {
			toast("The backends could not be probed", { detail: /** @type {Error} */ (problem).message, isBad: true });
		}
		set(refresh, "aria-disabled", null);
		set(refresh, "aria-busy", null);
	}

	async function drawTrends() {
		if (sparkline || ![...store.trends.values()].some((trend) => trend.samples.length > 1)) return;
		try {
			({ sparkline } = await import("../spark.js"));
			drawTable();
		} catch { /* The figures say the same. */ }
	}

	async function turnDialogs() {
		if (!dialogs && here().path.length === 0) return;
		try {
			const { storageDialogs } = await import("../dialogs/storage.js");
			if (isOver) return;
			dialogs ??= storageDialogs(focusNext);
			dialogs.turn();
		} catch (error) {
			toast("This could not be opened", { detail: /** @type {Error} */ (error).message, isBad: true });
		}
	}

	/** The row that opened the dialog is gone: the reader goes on at the next one. */
	function focusNext() {
		const next = list.body.querySelector(".actions button:not([aria-disabled])");
		(next instanceof HTMLElement ? next : document.getElementById("main"))?.focus();
	}

	return {
		title: "Storage",
		element,
		update(change) {
			if (change.trends) void drawTrends();
			if (change.everything || change.backends?.size || change.trends || change.hosts?.size) {
				drawFilters();
				drawTiles();
				drawTable();
			}
			updateRecent?.(change);
			grid.update(change);
		},
		turn() {
			drawFilters();
			drawTable();
			// They may have been read before there was a view to tell.
			void drawTrends();
			void turnDialogs();
		},
		end() {
			dialogs?.end();
			dialogs = null;
			isOver = true;
			seen.disconnect();
			forget();
			endAging();
		},
	};
}

/** @param {any} backend */
function capacity(backend) {
	const found = backend.capacity;
	if (!found) return "—";
	const share = found.total_bytes ? found.used_bytes / found.total_bytes : 0;
	const bar = h("div", { class: `bar ${share >= BAD ? "bad" : share >= FAIR ? "fair" : ""}`, "aria-hidden": "true" }, h("div"));
	/** @type {HTMLElement} */ (bar.firstElementChild).style.setProperty("width", `${(share * 100).toFixed(1)}%`);
	const trend = store.trends.get(backend.id);
	const days = trend?.full_in_days;
	const samples = trend?.samples ?? [];
	return h(
		"div",
		{ class: "capacity" },
		h(
			"div",
			null,
			bar,
			h("p", null, `${bytes(found.used_bytes)} / ${bytes(found.total_bytes)} (${Math.round(share * 100)} %)`),
			days !== null && days !== undefined &&
				h("p", { class: days < 14 ? "fair" : "hint" }, `full in about ${days < 1 ? "a day" : count(Math.round(days), "day")}`),
		),
		samples.length > 1 && sparkline &&
			sparkline(
				samples.map((each) => each.used_bytes),
				samples.at(-1).total_bytes / 100,
				`Used in the last 24 hours: from ${bytes(samples[0].used_bytes)} to ${bytes(samples.at(-1).used_bytes)}`,
			),
	);
}
