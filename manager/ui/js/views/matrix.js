// Health by host: one cell a backend and host, painted at once and then touched one by one. One stop of the Tab key; arrows move within.

import { fill, h, inTurns, keyed, say, set } from "../dom.js";
import { milliseconds } from "../format.js";
import { cellLook } from "../health.js";
import { address, here } from "../router.js";
import { liveHosts, refOf, store } from "../store.js";

/** More than a screen shows. */
const CELLS_IN_VIEW = 600;

/** The matrix as a card; `update` takes the store's changes. */
export function matrix() {
	const head = h("div", { class: "row", role: "row" }), body = h("div", { role: "rowgroup" });
	const grid = h(
		"div",
		{ class: "matrix", role: "grid", "aria-label": "Health by host", onkeydown: onKey, onclick: onClick, onfocusin: onFocus },
		h("div", { role: "rowgroup", class: "heads" }, head),
		body,
	);
	const scroll = h("div", { class: "scroll" }, grid);
	const none = h("p", { class: "hint" });
	const element = h(
		"section",
		{ class: "card", "aria-labelledby": "matrix" },
		h("h2", { id: "matrix" }, "Health by host"),
		h("p", { class: "hint" }, "Each host probes each backend. A backend is only as healthy as its worst host."),
		none,
		scroll,
	);
	/** @type {Map<string, HTMLElement>} */
	const cells = new Map();
	/** @type {Map<string, HTMLElement>} */
	const heads = new Map();
	let columns = "", rows = "", turns = 0;

	/** Rows and columns are those of the store. Rows are changed in place; only another host draws all of them anew. */
	function draw() {
		const hosts = liveHosts(), backends = [...store.backends.values()];
		const isBare = hosts.length === 0 || backends.length === 0;
		set(none, "hidden", !isBare);
		set(scroll, "hidden", isBare);
		say(none, hosts.length ? "No backend yet." : "No host has joined yet: make a join token on the page Hosts.");
		const nextColumns = JSON.stringify(hosts.map((each) => [each.id, each.name])),
			nextRows = JSON.stringify(backends.map((each) => [each.id, each.name]));
		const focused = document.activeElement instanceof HTMLElement ? document.activeElement.dataset.key : undefined;
		if (nextColumns !== columns) drawHeads(hosts);
		if (nextColumns !== columns || nextRows !== rows) {
			columns = nextColumns;
			rows = nextRows;
			const mine = (turns += 1);
			const put = (/** @type {any[]} */ some) =>
				keyed(body, some, (backend) => backend.id, (backend) => row(backend, hosts), (element, backend) => rename(element, backend));
			if (body.children.length > 0) put(backends);
			else {
				/** @type {any[]} */
				const drawn = [];
				inTurns(
					backends,
					(some) => {
						drawn.push(...some);
						put(drawn);
						if (focused) cells.get(focused)?.focus();
					},
					() => mine === turns,
					Math.max(4, Math.ceil(CELLS_IN_VIEW / hosts.length)),
				);
			}
			for (const key of cells.keys()) if (!store.backends.has(key.split("/")[0])) cells.delete(key);
			if (!grid.querySelector("[data-key][tabindex='0']")) {
				const first = body.querySelector("[data-key]");
				if (first) set(first, "tabindex", "0");
			}
		}
		for (const host of hosts) {
			const element = heads.get(host.id);
			if (element) {
				set(element, "class", `host ${host.state}`);
				set(element, "title", host.state === "online" ? host.name : `${host.name} is offline`);
			}
		}
	}

	/** @param {any[]} hosts */
	function drawHeads(hosts) {
		cells.clear();
		heads.clear();
		body.replaceChildren();
		grid.style.setProperty("--hosts", String(hosts.length));
		fill(
			head,
			h("div", { role: "columnheader" }, "Backend"),
			hosts.map((host) => {
				const element = h(
					"div",
					{ role: "columnheader", class: "host" },
					h("a", { href: address(["hosts"], { q: host.name }), tabindex: "-1" }, host.name),
				);
				heads.set(host.id, element);
				return element;
			}),
		);
	}

	/** @param {any} backend @param {any[]} hosts */
	function row(backend, hosts) {
		return h(
			"div",
			{ role: "row", class: "row" },
			h("div", { role: "rowheader" }),
			hosts.map((host) => {
				const key = `${backend.id}/${host.id}`;
				const cell = h("div", { role: "gridcell", tabindex: "-1", dataset: { key } });
				cells.set(key, cell);
				return cell;
			}),
		);
	}

	/** The row bears the backend's name, as its cells do. @param {Element} element @param {any} backend */
	function rename(element, backend) {
		const [name, ...rest] = element.children;
		if (name.textContent === backend.name) return;
		say(name, backend.name);
		set(name, "title", backend.name);
		for (const cell of rest) touch(/** @type {HTMLElement} */ (cell).dataset.key ?? "");
	}

	/** @param {HTMLElement} element @param {any} backend @param {any} host */
	function paint(element, backend, host) {
		const cell = store.cells.get(backend.id)?.get(host.id);
		if (!cell) {
			set(element, "class", "cell not");
			set(element, "aria-label", `${backend.name} on ${host.name}: not for this host`);
			say(element, "–");
			return;
		}
		const look = cellLook(cell);
		const isTimed = cell.status === "healthy" && cell.latency_ms !== undefined && cell.latency_ms !== null;
		const words = isTimed ? milliseconds(cell.latency_ms) : look.word;
		set(element, "class", `cell ${look.tone} i-${look.icon}`);
		set(element, "aria-label", `${backend.name} on ${host.name}: ${look.word}${isTimed ? `, ${words}` : ""}`);
		set(element, "title", cell.detail || null);
		say(element, words);
	}

	/** @param {string} key */
	function touch(key) {
		const element = cells.get(key);
		if (!element) return;
		const [backend, host] = key.split("/");
		const [b, on] = [store.backends.get(backend), store.hosts.get(host)];
		if (b && on) paint(element, b, on);
	}

	/** @param {KeyboardEvent} event */
	function onKey(event) {
		const at = event.target instanceof HTMLElement ? event.target : null;
		if (!at?.dataset.key) return;
		if (event.key === "Enter" || event.key === " ") {
			event.preventDefault();
			open(at.dataset.key);
			return;
		}
		const row = /** @type {Element} */ (at.parentElement);
		const column = [...row.children].indexOf(at);
		/** @type {Record<string, Element | null | undefined>} */
		const next = {
			ArrowRight: at.nextElementSibling,
			ArrowLeft: column > 1 ? at.previousElementSibling : null,
			ArrowDown: row.nextElementSibling?.children[column],
			ArrowUp: row.previousElementSibling?.children[column],
			Home: row.children[1],
			End: row.lastElementChild,
		};
		const to = next[event.key];
		if (to === undefined && !(event.key in next)) return;
		event.preventDefault();
		if (to instanceof HTMLElement && to.dataset.key) to.focus();
	}

	/** @param {FocusEvent} event */
	function onFocus(event) {
		const at = event.target instanceof HTMLElement && event.target.dataset.key ? event.target : null;
		if (!at) return;
		const before = grid.querySelector("[data-key][tabindex='0']");
		if (before && before !== at) set(before, "tabindex", "-1");
		set(at, "tabindex", "0");
	}

	/** @param {MouseEvent} event */
	function onClick(event) {
		const at = event.target instanceof HTMLElement ? event.target.closest("[data-key]") : null;
		if (at instanceof HTMLElement && at.dataset.key) open(at.dataset.key);
	}

	/** @param {string} key */
	function open(key) {
		const [backend, host] = key.split("/");
		const [b, on] = [store.backends.get(backend), store.hosts.get(host)];
		// Names of dialogs are not free for hosts here.
		if (b && on) location.hash = address(["storage", refOf(b), ["edit", "remove", "initialize"].includes(on.name) ? on.id : on.name], here().query);
	}

	return {
		element,
		/** @param {import("../store.js").Change} change */
		update(change) {
			if (change.everything || change.backends?.size || change.hosts?.size) draw();
			if (change.everything) inTurns([...cells.keys()], (some) => some.forEach(touch), () => true, 1_500);
			for (const { backend_id, host_id } of change.cells ?? []) touch(`${backend_id}/${host_id}`);
		},
	};
}
