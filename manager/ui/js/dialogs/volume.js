// One volume: what it is, who has it and by which path, and what can be done with it.

import { call, part } from "../api.js";
import { dialog, facts } from "../dialog.js";
import { fill, h, keyed } from "../dom.js";
import { ago, bytes, labelText, moment } from "../format.js";
import { badge } from "../health.js";
import { address, here } from "../router.js";
import { may, refOf, watch } from "../store.js";
import { attachmentFacts } from "./volume-attach.js";
import { volumeActions, volumeLook } from "./volume-look.js";
import { drawProgress, idOf, progressLine, tracker } from "./volume-progress.js";

/** @param {any} volume @returns {Promise<any>} */
export function showVolume(volume) {
	const path = `/v1/volumes/${part(volume.id)}`;
	const place = h("div", { class: "volume" }), working = h("div");
	const operations = tracker({
		wanted: () => [idOf(volume.operation)].filter((id) => id !== null),
		onChange: drawOperation,
		onEnd: () => void read(),
	});
	let reading = false, isWanted = false, shown = "";

	/** One request at a time, and one more for whatever came meanwhile. */
	async function read() {
		isWanted = true;
		if (reading) return;
		reading = true;
		while (isWanted && box.element.open) {
			isWanted = false;
			try {
				volume = await call("GET", path);
				draw();
			} catch (problem) {
				if (/** @type {import("../api.js").Problem} */ (problem).status === 404) box.notice("It is gone.");
			}
			await new Promise((resolve) => setTimeout(resolve, 1_000));
		}
		reading = false;
	}

	function draw() {
		drawOperation();
		operations.nudge();
		if (JSON.stringify(volume) === shown) return;
		shown = JSON.stringify(volume);
		const actions = volumeActions(volume, (...to) => {
			location.hash = address(["volumes", ...to], here().query);
		});
		fill(
			place,
			h("p", null, badge(volumeLook(volume))),
			actions.length > 0 && h(
				"p",
				{ class: "chips" },
				actions.map((each) =>
					h("button", {
						type: "button",
						class: "small",
						title: each.why ?? each.label,
						"aria-disabled": each.why ? "true" : null,
						"aria-label": each.why ? `${each.label}: ${each.why}` : each.label,
						onclick: () => {
							if (!each.why) each.run();
						},
					}, each.text)
				),
			),
			volume.attachments.map((/** @type {any} */ each) =>
				h(
					"section",
					{ class: "checks", "aria-label": `Attached to ${each.host}` },
					h(
						"h3",
						null,
						`Attached to ${each.host}`,
						h("span", { class: "hint", title: moment(each.since) }, ` ${ago(each.since)}${each.state === "attached" ? "" : `, ${each.state}`}`),
					),
					attachmentFacts(each, volume.format),
					may("operator") && h("p", null, h("a", { href: address(["volumes", refOf(volume), "detach", each.host]) }, `Detach from ${each.host}`)),
				)
			),
			facts([
				["Backend", h("a", { href: address(["storage", volume.backend]) }, volume.backend)],
				["Lies on", volume.host ?? "storage that all its hosts share"],
				["Size", `${bytes(volume.size_bytes)} (${volume.size_bytes.toLocaleString("en")} bytes)`],
				["Format", volume.format],
				["Made from", volume.source ?? "nothing: it began empty"],
				["Snapshots", h("a", { href: address(["volumes", refOf(volume), "snapshots"]) }, String(volume.snapshots))],
				["Labels", labelText(volume.labels) || "—"],
				["Made", moment(volume.created_at)],
				["Changed", `${moment(volume.updated_at)}, version ${volume.version}`],
				["On the storage", h("code", null, volume.locator)],
				["Id", h("code", null, volume.id)],
			]),
		);
	}

	function drawOperation() {
		const id = idOf(volume.operation);
		working.hidden = !id;
		if (!id) {
			fill(working);
			return;
		}
		keyed(working, [id], (each) => each, (each) => progressLine(each, volume.name), (made) => drawProgress(made, operations.get(id)));
	}

	const box = dialog({
		title: volume.name,
		body: [working, place],
		call: () => ({ method: "GET", path: `/v1/volumes/${part(volume.name)}` }),
		onClose: () => {
			stop();
			operations.end();
		},
	});
	const stop = watch((change) => {
		if (change.everything || change.operations || change.event) void read();
	});
	draw();
	return box.open();
}
