// Volumes: every one in a table, with what is under way on it; each dialog has an address, `#/volumes/NAME/attach`.

import "../more.js";
import { all } from "../api.js";
import { fill, h, icon, say } from "../dom.js";
import { toast } from "../toast.js";
import { bytes } from "../format.js";
import { isUnused } from "../dialogs/volume-look.js";
import { idOf, tracker } from "../dialogs/volume-progress.js";
import { opener } from "../opener.js";
import { paced } from "../pace.js";
import { here, put, replace } from "../router.js";
import { focusOnSlash } from "../habits.js";
import { liveHosts, may, store } from "../store.js";
import { table } from "../table.js";
import { volumeColumns } from "./volume-columns.js";
import { menu } from "./volume-menu.js";

/** Between two readings of the whole list. */
const REST_MS = 1_000;
/** What can be asked of its use. */
const USES = { "": "Attached or not", attached: "Attached", detached: "Not attached", unused: "Unused" };

/** Snapshots have a list of their own, to which one comes back. @param {string[]} path */
const parentOf = ([ref, what, ...more]) => (what === "snapshot" || (what === "snapshots" && more.length > 0) ? [ref, "snapshots"] : []);

/** @typedef {import("../dialogs/volume-look.js").Done} Done */

/** @returns {import("../shell.js").View} */
export function view() {
	const add = h("button", { type: "button", class: "main", onclick: () => go("add") }, icon("add"), "New volume");
	const search = h("input", {
		type: "search",
		placeholder: "Search name, label, source…",
		"aria-label": "Search volumes",
		"aria-keyshortcuts": "/",
		oninput: () => put("q", search.value),
	});
	const backend = filter("Backend", "backend"), host = filter("Host", "host"), use = filter("Use", "use");
	const shown = h("span", { class: "hint", role: "status" });
	const empty = h("div", { class: "empty" }, h("p", { class: "loading", role: "status" }, "Loading…"));
	const failed = h("div", { class: "banner bad", role: "alert", hidden: true });
	const more = menu();
	const list = table({
		label: "Volumes",
		key: (volume) => volume.id,
		columns: volumeColumns((v) => operations.get(idOf(v.operation) ?? ""), go, more),
	});
	list.element.hidden = true;

	const element = h(
		"div",
		null,
		h(
			"div",
			{ class: "heading" },
			h("div", null, h("h1", null, "Volumes"), h("p", { class: "hint" }, "Guests' disks, wherever they lie.")),
			h("div", { class: "actions" }, may("operator") && add),
		),
		failed,
		h("div", { class: "filters" }, search, backend, host, use, shown),
		h("div", { class: "card flush" }, list.element, empty),
		more.element,
	);

	/** @type {any[]} */
	let volumes = [];
	/** Operations that were begun here: their end is told. @type {Map<string, Done>} */
	const begun = new Map();
	/** What is to be said when no dialog is open. @type {(() => void)[]} */
	const unsaid = [];
	let isRead = false, isOver = false, isStale = false;
	/** @type {(volumes: any[]) => void} */
	let onRead = () => {};
	/** @type {Promise<any[]>} */
	const firstRead = new Promise((resolve) => {
		onRead = resolve;
	});

	const operations = tracker({
		wanted: () => new Set([...volumes.map((each) => idOf(each.operation)).filter((id) => id !== null), ...begun.keys()]),
		onChange: (ids) => {
			for (const each of volumes) if (each.operation && ids.has(idOf(each.operation) ?? "")) list.touch(each);
		},
		onEnd,
	});

	const reads = paced(REST_MS, read);
	const endSlash = focusOnSlash(search);
	document.addEventListener("click", onLink);
	document.addEventListener("visibilitychange", onVisible);

	/** @param {string} label @param {string} name */
	function filter(label, name) {
		const control = h("select", { "aria-label": label, onchange: () => put(name, control.value) });
		return control;
	}

	/** A link to a dialog, in a row or in another dialog, keeps the filters. @param {MouseEvent} event */
	function onLink(event) {
		const link = event.target instanceof Element ? event.target.closest("a[href^='#/volumes/']") : null;
		if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
		event.preventDefault();
		const words = here().query.toString();
		location.hash = `${link.getAttribute("href")}${words ? `?${words}` : ""}`;
	}

	/** @param {...string} path */
	function go(...path) {
		replace(["volumes", ...path], here().query);
	}

	// ---- the list

	function draw() {
		const { query } = here();
		const needle = (query.get("q") ?? "").toLowerCase();
		const [onBackend, onHost, used] = ["backend", "host", "use"].map((each) => query.get(each));
		const found = volumes.filter((v) =>
			(!onBackend || onBackend === v.backend || onBackend === v.backend_id) &&
			(!onHost || onHost === v.host || v.attachments.some((/** @type {any} */ each) => each.host === onHost || each.host_id === onHost)) &&
			(!used || (used === "unused" ? isUnused(v) : (used === "attached") === v.attachments.length > 0)) &&
			(!needle || [v.name, v.source ?? "", v.backend, v.id, v.locator, ...Object.entries(v.labels).flat()].some((word) =>
				String(word).toLowerCase().includes(needle)
			))
		);
		list.show(found);
		const isEmpty = volumes.length === 0, isNone = found.length === 0;
		list.element.hidden = isNone;
		empty.hidden = !isNone || !isRead;
		if (isNone && isRead) drawEmpty(isEmpty);
		if (!isRead) empty.hidden = !failed.hidden;
		const size = found.reduce((sum, v) => sum + v.size_bytes, 0);
		say(
			shown,
			isEmpty
				? ""
				: found.length === volumes.length
				? `${found.length} in all, ${bytes(size)}`
				: `${found.length} of ${volumes.length} shown, ${bytes(size)}`,
		);
	}

	/** @param {boolean} isEmpty */
	function drawEmpty(isEmpty) {
		const look = isEmpty ? `empty ${store.backends.size === 0}` : "none";
		if (empty.dataset.of === look) return;
		empty.dataset.of = look;
		if (!isEmpty) {
			fill(
				empty,
				h("h2", null, "Nothing matches"),
				h("p", null, "No volume fits the search and the filters."),
				h("button", { type: "button", onclick: () => replace(["volumes"], new URLSearchParams()) }, "Clear them"),
			);
		} else if (store.backends.size === 0) {
			fill(
				empty,
				h("h2", null, "No volumes yet"),
				h("p", null, "They need storage to lie on: add a backend first."),
				h("p", null, h("a", { href: "#/storage" }, "To the storage")),
			);
		} else {
			fill(
				empty,
				h("h2", null, "No volumes yet"),
				h("p", null, "A volume is a guest's disk: make one empty, or from an image, a volume or a snapshot."),
				may("operator")
					? h("button", { type: "button", class: "main", onclick: () => go("add") }, icon("add"), "Make the first volume")
					: h("p", { class: "hint" }, "An operator can make one."),
			);
		}
	}

	function drawFilters() {
		const { query } = here();
		const hosts = new Set([
			...liveHosts().map((each) => each.name),
			...volumes.flatMap((v) => [v.host, ...v.attachments.map((/** @type {any} */ each) => each.host)]).filter(Boolean),
		]);
		choices(backend, "Every backend", [...store.backends.values()].map((each) => each.name), query.get("backend"));
		choices(host, "Every host", [...hosts], query.get("host"));
		if (use.options.length === 0) fill(use, Object.entries(USES).map(([value, title]) => h("option", { value }, title)));
		use.value = query.get("use") ?? "";
		if (document.activeElement !== search) search.value = query.get("q") ?? "";
	}

	/** @param {HTMLSelectElement} control @param {string} every @param {string[]} names @param {string | null} value one that is not among them is kept: the list is filtered by it */
	function choices(control, every, names, value) {
		const known = value && !names.includes(value) ? [...names, value] : names;
		const look = known.join("\n");
		if (control.dataset.of !== look) {
			control.dataset.of = look;
			fill(
				control,
				h("option", { value: "" }, every),
				known.map((each) => h("option", { value: each }, store.backends.get(each)?.name ?? store.hosts.get(each)?.name ?? each)),
			);
		}
		control.value = value ?? "";
	}

	// ---- reading

	/** The list is read soon, or when somebody looks again. */
	function soon() {
		isStale = document.hidden;
		if (!isStale) reads.ask();
	}

	function onVisible() {
		if (!document.hidden && isStale) soon();
	}

	async function read() {
		try {
			const found = await all("/v1/volumes");
			if (isOver) return;
			volumes = found;
			isRead = true;
			failed.hidden = true;
		} catch (problem) {
			if (isOver) return;
			failed.hidden = false;
			fill(
				failed,
				icon("warning"),
				h(
					"div",
					null,
					h("p", null, h("strong", null, "The volumes could not be read."), ` ${/** @type {Error} */ (problem).message}`),
					h("button", { type: "button", onclick: soon }, "Try again"),
				),
			);
		}
		drawFilters();
		draw();
		if (isRead) onRead(volumes);
		operations.nudge();
	}

	/** @param {string} id @param {any} operation */
	function onEnd(id, operation) {
		const done = begun.get(id);
		begun.delete(id);
		soon();
		if (!done || !operation) return;
		const isBad = operation.state === "failed";
		const title = operation.state === "succeeded" ? done.title : isBad ? done.failed : "Cancelled";
		unsaid.push(() => toast(title, { detail: [done.detail, isBad && operation.error?.detail].filter(Boolean).join(": "), isBad }));
		speak();
	}

	/** Notices wait while a dialog is open, for they would be inert. */
	function speak() {
		if (document.querySelector("dialog[open]")) return;
		for (const each of unsaid.splice(0)) each();
	}

	// ---- dialogs

	/** Said in the list to which one comes back from a dialog. */
	let notice = "";
	const dialogs = opener("volumes", async (path) => {
		const { volumeDialog } = await import("../dialogs/volumes.js");
		const show = await volumeDialog(path, () => firstRead, notice);
		notice = "";
		return async () => {
			const done = await show();
			if (done && !isOver) onDone(done, parentOf(path).length > 0);
		};
	}, parentOf);

	/** @param {Done} done @param {boolean} isSaidInList */
	function onDone(done, isSaidInList) {
		if (done.operation) begun.set(done.operation, done);
		const said = done.operation ? (done.busy ?? "") : done.title;
		if (isSaidInList) notice = `${said}.`;
		else unsaid.push(() => toast(said, { detail: done.detail }));
		soon();
		operations.nudge();
		speak();
		// The reader goes on where the row was that is gone.
		if (document.activeElement === document.body) document.getElementById("main")?.focus();
	}

	return {
		title: "Volumes",
		element,
		update(change) {
			const { event } = change;
			if (change.everything || (event && /^(volume|snapshot|attachment|host)\.|^backend\.(updated|deleted)/.test(event.type))) soon();
			// Those that are known to be under way are asked for one by one already.
			else if (change.operations?.some((id) => !operations.get(id))) soon();
			if (change.backends || change.hosts || change.everything) {
				drawFilters();
				if (isRead) draw();
			}
		},
		turn() {
			drawFilters();
			draw();
			more.hide();
			dialogs.turn();
			if (here().path.length === 0) speak();
		},
		end() {
			isOver = true;
			reads.stop();
			operations.end();
			endSlash();
			document.removeEventListener("click", onLink);
			document.removeEventListener("visibilitychange", onVisible);
			dialogs.end();
		},
	};
}
