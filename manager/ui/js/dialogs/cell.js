// One cell of the matrix: what the host's last probes of the backend found, and what to do about it; live.

import { call, part } from "../api.js";
import { dialog, facts } from "../dialog.js";
import { fill, h } from "../dom.js";
import { ago, bytes, moment } from "../format.js";
import { paced } from "../pace.js";
import { seenLines } from "../seen.js";
import { may, store, watch } from "../store.js";

const READ_MS = 1_000;

/** @param {any} backend @param {any} host @returns {Promise<() => Promise<any>>} what opens it */
export async function showCell(backend, host) {
	if (!host) throw new Error("There is no such host.");
	const path = `/v1/storage_backends/${part(backend.id)}`;
	const place = h("div");

	async function read() {
		const [{ hosts }, { items }] = await Promise.all([call("GET", `${path}/hosts`), call("GET", `${path}/hosts/${part(host.id)}/probes`)]);
		const seen = hosts.find((/** @type {any} */ each) => each.host_id === host.id);
		if (!seen) {
			fill(place, h("p", null, `${backend.name} is not for ${host.name}.`));
			return;
		}
		fill(
			place,
			seenLines(seen),
			facts([
				["Last probed", seen.observed_at ? `${moment(seen.observed_at)}, ${ago(seen.observed_at)}` : "not yet"],
				["Capacity", seen.capacity ? `${bytes(seen.capacity.used_bytes)} of ${bytes(seen.capacity.total_bytes)}` : "—"],
				[
					"Config",
					seen.observed_generation === seen.desired_generation
						? `generation ${seen.desired_generation}`
						: `generation ${seen.observed_generation ?? "–"}, wanted is ${seen.desired_generation}`,
				],
				["Host", `${host.name}, ${store.hosts.get(host.id)?.state ?? "gone"}`],
			]),
			h("h3", null, "Last probes"),
			items.length > 0
				? h(
					"ol",
					{ class: "faults" },
					items.map((/** @type {any} */ each) => h("li", null, seenLines(each, { when: moment(each.observed_at), remedy: null }))),
				)
				: h("p", { class: "hint" }, "None since this manager was started."),
		);
	}

	const reads = paced(READ_MS, async () => {
		try {
			await read();
		} catch { /* What was read last stays; the page says when the manager is away. */ }
	});
	const stop = watch((change) => {
		const isHere = change.cells?.some((each) => each.backend_id === backend.id && each.host_id === host.id);
		if (change.everything || isHere || change.hosts?.has(host.id)) reads.ask();
	});
	const probe = h("button", {
		type: "button",
		onclick: () =>
			box.during(async () => {
				await call("POST", `${path}/probe`);
				await read();
			}, "Probing…"),
	}, "Probe now");
	const box = dialog({
		title: `${backend.name} on ${host.name}`,
		body: place,
		tools: may("operator") ? [probe] : [],
		call: () => ({ method: "GET", path: `${path}/hosts` }),
		onClose: () => {
			stop();
			reads.stop();
		},
	});
	await read();
	return () => box.open();
}
