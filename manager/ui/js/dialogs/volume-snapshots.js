// Snapshots of a volume: take one, go back to one, delete one.

import { all, part } from "../api.js";
import { dialog } from "../dialog.js";
import { fill, h, keyed } from "../dom.js";
import { labelsField, textField } from "../form.js";
import { ago, bytes, labelText, moment, words } from "../format.js";
import { address, here } from "../router.js";
import { may, refOf, watch } from "../store.js";
import { holders } from "./volume-look.js";
import { begin, drawProgress, idOf, progressLine, tracker } from "./volume-progress.js";

/** @typedef {import("./volume-look.js").Done} Done */

/** @param {any} volume @param {string} notice what has just been done @returns {Promise<undefined>} */
export function showSnapshots(volume, notice) {
	const path = `/v1/volumes/${part(volume.id)}/snapshots`;
	const list = h("ul", { class: "entries", "aria-label": `Snapshots of ${volume.name}` });
	const none = h("p", { class: "hint", role: "status" }, "Reading…");
	/** @type {any[]} */
	let found = [];
	const operations = tracker({
		wanted: () => found.map((each) => idOf(each.operation)).filter((id) => id !== null),
		onChange: draw,
		onEnd: () => void read(),
	});

	async function read() {
		try {
			found = await all(path);
			none.textContent = found.length > 0 ? "" : "None yet. A snapshot stands alone: nothing that happens to the volume reaches it.";
		} catch (problem) {
			none.textContent = `They could not be read: ${/** @type {Error} */ (problem).message}`;
		}
		none.hidden = none.textContent === "";
		draw();
		operations.nudge();
	}

	function draw() {
		keyed(list, found, (each) => each.id, make, (element, each) => {
			const held = volume.attachments.length > 0 ? `it is attached to ${holders(volume)}: detach it first` : "";
			const line = element.querySelector(".working"), id = idOf(each.operation);
			if (line && !id) line.remove();
			if (!line && id) element.append(progressLine(id, each.name));
			const now = element.querySelector(".working");
			if (now && id) drawProgress(now, operations.get(id));
			const links = element.querySelector(".actions");
			const isReady = each.state === "ready" && !id;
			if (links) links.toggleAttribute("hidden", !isReady || !may("operator"));
			const revert = links?.querySelector("a.revert");
			if (revert) revert.setAttribute("title", held ? `Cannot be done now: ${held}` : "The volume as it was then");
			const state = element.querySelector(".state");
			if (state) fill(state, isReady ? "" : words(each.state));
		});
	}

	/** @param {any} each */
	function make(each) {
		const about = [ago(each.created_at), bytes(each.size_bytes), labelText(each.labels)].filter(Boolean).join(" · ");
		return h(
			"li",
			null,
			h(
				"p",
				null,
				h("strong", null, each.name),
				" ",
				h("span", { class: "hint", title: moment(each.created_at) }, about),
				" ",
				h("span", { class: "state" }),
			),
			h(
				"p",
				{ class: "actions" },
				h("a", {
					class: "revert",
					href: address(["volumes", refOf(volume), "snapshots", each.name, "revert"]),
					"aria-label": `Revert to ${each.name}`,
				}, "Revert to it"),
				h(
					"a",
					{ href: address(["volumes", "add", "snapshot", volume.name, each.name]), "aria-label": `New volume from ${each.name}` },
					"New volume from it",
				),
				h("a", { href: address(["volumes", refOf(volume), "snapshots", each.name, "delete"]), "aria-label": `Delete ${each.name}` }, "Delete"),
			),
		);
	}

	function take() {
		location.hash = address(["volumes", refOf(volume), "snapshot"], here().query);
	}

	const box = dialog({
		title: `Snapshots of ${volume.name}`,
		body: [none, list],
		tools: may("operator") ? [h("button", { type: "button", class: "main", onclick: take }, "Take snapshot")] : [],
		call: () => ({ method: "GET", path: `/v1/volumes/${part(volume.name)}/snapshots` }),
		onClose: () => {
			stop();
			operations.end();
		},
	});
	const stop = watch((change) => {
		if (change.everything || change.event?.type.startsWith("snapshot.")) void read();
	});
	void read();
	if (notice) box.notice(notice);
	return box.open();
}

/** @param {any} volume @returns {Promise<Done | undefined>} */
export function takeSnapshot(volume) {
	const name = textField({ pointer: "/name", title: "Name", placeholder: "before-upgrade" });
	const labels = labelsField({ pointer: "/labels" });
	const fields = [name, labels];
	const body = () => ({ name: name.value() ?? "", labels: labels.value() });
	const writer = volume.attachments.find((/** @type {any} */ each) => each.mode === "rw");
	return dialog({
		title: `Take a snapshot of ${volume.name}`,
		body: [
			writer && h(
				"p",
				{ class: "banner" },
				`${writer.host} may be writing to it now. The snapshot holds what has reached the storage: ` +
					"have the guest flush first (fsfreeze, the guest agent). Only storage that shares blocks at once can do it.",
			),
			fields.map((each) => each.element),
		],
		submit: { label: "Take snapshot", busy: "Freezing it…" },
		call: () => ({ method: "POST", path: `/v1/volumes/${part(volume.name)}/snapshots`, body: body() }),
		fields: () => fields,
		async run() {
			const made = body();
			const { operation } = await begin("POST", `/v1/volumes/${part(volume.id)}/snapshots`, made);
			return {
				operation,
				title: `Snapshot ${made.name} taken`,
				busy: `Snapshot ${made.name} is being taken`,
				failed: `Snapshot ${made.name} could not be taken`,
			};
		},
	}).open();
}

/** @param {any} volume @param {string} snapshot @returns {Promise<Done | undefined>} */
export function revertVolume(volume, snapshot) {
	const held = volume.attachments.length > 0 ? `It is attached to ${holders(volume)}: detach it first.` : "";
	const box = dialog({
		title: `Revert ${volume.name} to ${snapshot}?`,
		body: [
			h("p", { class: "banner fair" }, `What was written to ${volume.name} since then is lost. To keep it, take a snapshot first.`),
			h("p", null, "The volume gets the snapshot's content and size. The snapshot stays."),
		],
		submit: { label: "Revert", class: "danger", busy: "Bringing it back…" },
		call: () => ({ method: "POST", path: `/v1/volumes/${part(volume.name)}/snapshots/${part(snapshot)}/revert` }),
		async run() {
			const { operation } = await begin("POST", `/v1/volumes/${part(volume.id)}/snapshots/${part(snapshot)}/revert`, undefined, {
				"If-Match": `"${volume.version}"`,
			});
			return {
				operation,
				title: `${volume.name} is as it was at ${snapshot}`,
				busy: `${volume.name} goes back to ${snapshot}`,
				failed: `${volume.name} stays as it was`,
			};
		},
	});
	if (held) {
		box.refuse(held);
		box.notice(held);
	}
	return box.open();
}

/** @param {any} volume @param {string} snapshot @returns {Promise<Done | undefined>} */
export function deleteSnapshot(volume, snapshot) {
	return dialog({
		title: `Delete snapshot ${snapshot}?`,
		body: h("p", null, `${volume.name} itself and its other snapshots are not touched. Volumes that were made from it do not need it any more.`),
		submit: { label: "Delete snapshot", class: "danger", busy: "Removing its bytes…" },
		call: () => ({ method: "DELETE", path: `/v1/volumes/${part(volume.name)}/snapshots/${part(snapshot)}` }),
		async run() {
			const { operation } = await begin("DELETE", `/v1/volumes/${part(volume.id)}/snapshots/${part(snapshot)}`);
			return {
				operation,
				title: `Snapshot ${snapshot} deleted`,
				busy: `Snapshot ${snapshot} is being deleted`,
				failed: `Snapshot ${snapshot} could not be deleted yet`,
			};
		},
	}).open();
}
