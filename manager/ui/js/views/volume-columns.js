// The columns of the volumes' table, and how each cell is drawn.

import { holders, volumeActions, volumeLook } from "../dialogs/volume-look.js";
import { drawProgress, idOf, progressLine } from "../dialogs/volume-progress.js";
import { fill, h, keyed, say, set } from "../dom.js";
import { bytes, moment } from "../format.js";
import { badge } from "../health.js";
import { address } from "../router.js";
import { may, refOf } from "../store.js";
import { buttons } from "../table.js";

/**
 * @param {(volume: any) => any} operationOf what is known of what is under way on it
 * @param {(...path: string[]) => void} go opens the dialog with that address
 * @param {ReturnType<typeof import("./volume-menu.js").menu>} menu
 * @returns {import("../table.js").Column<any>[]}
 */
export function volumeColumns(operationOf, go, menu) {
	return [
		{
			id: "status",
			title: "Status",
			sort: (v) => volumeLook(v).rank,
			look: (v) => volumeLook(v).word,
			draw: (cell, v) => fill(cell, badge(volumeLook(v))),
		},
		{
			id: "name",
			title: "Name",
			isHead: true,
			sort: (v) => v.name,
			look: (v) => [v.name, v.labels, v.operation, operationOf(v)],
			draw: (cell, v) => drawName(cell, v, operationOf(v)),
		},
		{
			id: "backend",
			title: "Backend",
			sort: (v) => v.backend,
			look: (v) => v.backend,
			draw: (cell, v) => fill(cell, h("a", { href: address(["storage", v.backend]) }, v.backend)),
		},
		{ id: "host", title: "Host", sort: (v) => v.host ?? "", look: (v) => v.host, draw: (cell, v) => fill(cell, v.host ?? "shared") },
		{
			id: "size",
			title: "Size",
			sort: (v) => v.size_bytes,
			look: (v) => v.size_bytes,
			draw: (cell, v) => fill(cell, h("span", { title: `${v.size_bytes.toLocaleString("en")} bytes` }, bytes(v.size_bytes))),
		},
		{
			id: "format",
			title: "Format",
			sort: (v) => v.format,
			look: (v) => v.format,
			draw: (cell, v) => fill(cell, h("span", { class: "chip" }, v.format)),
		},
		{ id: "attached", title: "Attached to", sort: holders, look: holders, draw: (cell, v) => fill(cell, holders(v) || "—") },
		{
			id: "snapshots",
			title: "Snapshots",
			sort: (v) => v.snapshots,
			look: (v) => [v.snapshots, refOf(v)],
			draw: (cell, v) =>
				fill(cell, h("a", { href: address(["volumes", refOf(v), "snapshots"]), "aria-label": `${v.snapshots} of ${v.name}` }, String(v.snapshots))),
		},
		{
			id: "source",
			title: "Source",
			sort: (v) => v.source ?? "",
			look: (v) => [v.source, v.created_at],
			draw: (cell, v) => fill(cell, h("span", { class: "hint", title: `Made ${moment(v.created_at)}` }, v.source ?? "empty")),
		},
		{
			id: "actions",
			title: "Actions",
			look: (v) => [refOf(v), v.state, v.operation, v.attachments, v.snapshots, may("operator")],
			draw: (cell, v) => drawActions(cell, v, volumeActions(v, go), menu),
		},
	];
}

/** Its link and its Cancel stay where they are, so that focus does. @param {HTMLTableCellElement} cell @param {any} v @param {any} operation */
function drawName(cell, v, operation) {
	const id = idOf(v.operation);
	const labels = Object.entries(v.labels);
	keyed(
		cell,
		["link", ...(labels.length > 0 ? ["labels"] : []), ...(id ? [id] : [])],
		(each) => each,
		(each) => (each === "link" ? h("a", { class: "name" }) : each === "labels" ? h("p", { class: "chips" }) : progressLine(each, v.name)),
		(made, each) => {
			if (each === "link") {
				say(made, v.name);
				set(made, "href", address(["volumes", refOf(v)]));
			} else if (each === "labels") fill(made, labels.map(([key, value]) => h("span", { class: "chip quiet" }, value ? `${key}: ${value}` : key)));
			else drawProgress(made, operation);
		},
	);
}

/** The most wanted one, and the others in a menu.
 * @param {HTMLTableCellElement} cell @param {any} v @param {import("../table.js").Action[]} actions @param {ReturnType<typeof import("./volume-menu.js").menu>} menu */
function drawActions(cell, v, actions, menu) {
	if (actions.length === 0) {
		buttons(cell, []);
		return;
	}
	/** @type {() => HTMLElement | null} */
	const button = () => cell.querySelector(".actions button:last-child");
	const open = () => {
		const at = button();
		if (at) menu.open(at, `Actions for ${v.name}`, actions);
	};
	buttons(cell, [{ ...actions[v.attachments.length > 0 ? 1 : 0], class: "small" }, {
		id: "more",
		label: `More for ${v.name}`,
		icon: "more",
		run: open,
	}]);
	const at = button();
	if (!at) return;
	set(at, "aria-haspopup", "menu");
	if (!at.hasAttribute("aria-expanded")) set(at, "aria-expanded", "false");
}
