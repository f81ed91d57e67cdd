// One backend: what it is, and how each host sees it; live.

import { call, part } from "../api.js";
import { dialog, facts } from "../dialog.js";
import { fill, h } from "../dom.js";
import { ago, bytes, labelText, moment, words } from "../format.js";
import { badge, lookOf, reasonOf } from "../health.js";
import { paced } from "../pace.js";
import { seenLines } from "../seen.js";
import { kindOf, may, store, watch } from "../store.js";
import { backendAddress } from "../subjects.js";

const READ_MS = 1_000;

/** @param {any} backend @returns {Promise<() => Promise<any>>} what opens it */
export async function showBackend(backend) {
	const path = `/v1/storage_backends/${part(backend.id)}`;
	const properties = kindOf(backend.kind).config_schema.properties;
	const about = h("div"), hosts = h("ul", { class: "faults" });

	function draw() {
		const b = store.backends.get(backend.id);
		if (!b) {
			box.notice("This backend has been removed.");
			return;
		}
		fill(
			about,
			h("p", null, badge(lookOf(b)), " ", reasonOf(b)),
			facts([
				["Kind", kindOf(b.kind).title],
				["State", words(b.state)],
				["Default", b.is_default ? "yes" : "no"],
				...Object.entries(b.config).map((
					[key, value],
				) => /** @type {[string, any]} */ ([properties[key]?.title ?? key, value === "" ? "—" : String(value)])),
				["Credentials", b.has_credentials ? "kept by the hosts" : "none"],
				[
					"Capacity",
					b.capacity
						? `${bytes(b.capacity.used_bytes)} of ${bytes(b.capacity.total_bytes)}, ${bytes(b.capacity.available_bytes)} available`
						: "not known",
				],
				["Live volumes", h("a", { href: `#/volumes?backend=${part(b.name)}` }, String(b.live_volumes))],
				["Hosts", b.hosts.names.includes("*") ? "every host" : b.hosts.names.join(", ")],
				["Labels", labelText(b.labels) || "—"],
				["Version", `${b.version}, generation ${b.generation}`],
				["Added", moment(b.created_at)],
				["Id", h("code", null, b.id)],
			]),
		);
	}

	/** @param {any[]} seen */
	const drawHosts = (seen) =>
		fill(
			hosts,
			seen.map((each) =>
				h("li", null, seenLines(each, { lead: h("a", { href: backendAddress(backend, [each.host]) }, each.host), when: ago(each.observed_at) }))
			),
		);

	const reads = paced(READ_MS, async () => {
		try {
			drawHosts((await call("GET", `${path}/hosts`)).hosts);
		} catch { /* What was read last stays; the page says when the manager is away. */ }
	});
	const stop = watch((change) => {
		if (change.everything || change.backends?.has(backend.id)) draw();
		if (change.everything || change.cells?.some((each) => each.backend_id === backend.id)) reads.ask();
	});
	const probe = h("button", {
		type: "button",
		onclick: () => box.during(async () => drawHosts((await call("POST", `${path}/probe`)).hosts), "Every host probes it…"),
	}, "Probe now");
	const box = dialog({
		title: backend.name,
		body: [about, h("h3", null, "As each host sees it"), hosts],
		tools: may("operator") ? [probe] : [],
		call: () => ({ method: "GET", path }),
		onClose: () => {
			stop();
			reads.stop();
		},
	});
	drawHosts((await call("GET", `${path}/hosts`)).hosts);
	draw();
	return () => box.open();
}
