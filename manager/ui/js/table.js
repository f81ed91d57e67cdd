// A table that is sorted by its heads and changed in place: a row by its key, a cell when what it shows has changed.

import { h, icon, inTurns, keyed, set } from "./dom.js";
import { here, put } from "./router.js";

/**
 * @template I
 * @typedef {{id: string, title: string, sort?: (item: I) => string | number, look: (item: I) => unknown,
 *   draw: (cell: HTMLTableCellElement, item: I) => void, isHead?: boolean}} Column
 *   look: anything that differs when the cell is to be drawn anew. sort: makes the head a button
 */

/**
 * @template I
 * @param {{label: string, columns: Column<I>[], key: (item: I) => string, sort?: string}} options  sort: the column at first, with `-` before it downwards
 */
export function table({ label, columns, key, sort = "" }) {
	const sorted = columns.filter((column) => column.sort);
	const heads = columns.map((column) =>
		h(
			"th",
			{ scope: "col", role: "columnheader", class: `c-${column.id}` },
			column.sort ? h("button", { type: "button", class: "sort", onclick: () => turn(column.id) }, column.title) : column.title,
		)
	);
	const body = h("tbody", { role: "rowgroup" });
	// On a phone the heads are out of sight.
	const choice = h(
		"select",
		{ "aria-label": "Sort by", onchange: () => put("sort", choice.value) },
		h("option", { value: "" }, "As they come"),
		sorted.flatMap((
			column,
		) => [h("option", { value: column.id }, column.title), h("option", { value: `-${column.id}` }, `${column.title}, downwards`)]),
	);
	const scroll = h(
		"div",
		{ class: "scroll", tabindex: "0", role: "region", "aria-label": label },
		h("table", { role: "table", "aria-label": label }, h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)), body),
	);
	const element = h("div", null, sorted.length > 0 && h("div", { class: "sortby" }, h("span", { "aria-hidden": "true" }, "Sort by"), choice), scroll);
	/** @type {I[]} */
	let items = [];
	let turns = 0, isFilling = false;

	/** @param {string} id */
	function turn(id) {
		const [now, isDown] = order();
		put("sort", now === id && !isDown ? `-${id}` : id);
	}

	/** @returns {[string, boolean]} */
	function order() {
		const wanted = here().query.get("sort") || sort;
		return [wanted.replace(/^-/, ""), wanted.startsWith("-")];
	}

	function draw() {
		const [id, isDown] = order();
		choice.value = here().query.get("sort") || sort;
		const by = sorted.find((column) => column.id === id)?.sort;
		columns.forEach((column, n) => {
			if (column.sort) set(heads[n], "aria-sort", column.id === id ? (isDown ? "descending" : "ascending") : "none");
		});
		const rows = by ? [...items].sort((a, b) => compare(by(a), by(b)) * (isDown ? -1 : 1)) : items;
		const mine = (turns += 1);
		if (body.children.length > 0 && !isFilling) {
			keyed(body, rows, key, make, update);
			return;
		}
		isFilling = true;
		/** @type {I[]} */
		const drawn = [];
		inTurns(
			rows,
			(some) => {
				drawn.push(...some);
				keyed(body, drawn, key, make, update);
				isFilling = drawn.length < rows.length;
			},
			() => mine === turns,
		);
	}

	function make() {
		return h(
			"tr",
			{ role: "row" },
			columns.map((column) =>
				h(/** @type {"td"} */ (column.isHead ? "th" : "td"), {
					class: `c-${column.id}`,
					role: column.isHead ? "rowheader" : "cell",
					scope: column.isHead ? "row" : null,
					dataset: { title: column.title },
				})
			),
		);
	}

	/** @param {Element} row @param {I} item */
	function update(row, item) {
		columns.forEach((column, n) => {
			const cell = /** @type {any} */ (row.children[n]);
			const look = JSON.stringify(column.look(item));
			if (cell.stowageLook === look) return;
			cell.stowageLook = look;
			column.draw(cell, item);
		});
	}

	return {
		element,
		body,
		/** @param {Iterable<I>} next */
		show(next) {
			items = [...next];
			draw();
		},
		/** One row, where it stands. @param {I} item */
		touch(item) {
			const row = [...body.children].find((each) => /** @type {any} */ (each).stowageKey === key(item));
			if (row) update(row, item);
		},
	};
}

/** @param {string | number} a @param {string | number} b */
function compare(a, b) {
	return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
}

/** @typedef {{id: string, label: string, icon?: import("./dom.js").IconName, text?: string, why?: string, run: () => void, class?: string}} Action  why: the reason for which it cannot be done; it then stays focusable and says so */

/** The cell has these buttons; present ones are changed in place. @param {Element} cell @param {Action[]} actions */
export function buttons(cell, actions) {
	let place = cell.querySelector(":scope > .actions");
	if (!place) cell.append(place = h("div", { class: "actions" }));
	keyed(
		place,
		actions,
		(action) => action.id,
		(action) => h("button", { type: "button" }, action.icon && icon(action.icon), action.text),
		(element, action) => {
			const button = /** @type {HTMLButtonElement} */ (element);
			set(button, "class", action.class ?? "quiet");
			set(button, "aria-label", action.why ? `${action.label}: ${action.why}` : action.label);
			set(button, "title", action.why ?? action.label);
			set(button, "aria-disabled", action.why ? "true" : null);
			button.onclick = () => {
				if (!action.why) action.run();
			};
		},
	);
}
