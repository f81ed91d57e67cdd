// One host: what it is, and every backend as it sees it, with what is wrong and what helps.

import { call, part } from "../api.js";
import { dialog, facts } from "../dialog.js";
import { fill, h, keyed, say } from "../dom.js";
import { ago, labelText, moment } from "../format.js";
import { badge, cellLook } from "../health.js";
import { seenLines } from "../seen.js";
import { hostLook } from "../hosts.js";
import { address, here, replace } from "../router.js";
import { backendAddress, hostRef } from "../subjects.js";
import { kindOf, may, store, watch } from "../store.js";

/** How many remedies are asked for at a time. */
const AT_ONCE = 4;

/** @param {any} given @returns {Promise<any>} */
export function showHost(given) {
	let host = given;
	const about = h("div");
	const head = h("h3", null, "Backends");
	const none = h("p", { class: "hint" });
	const list = h("ul", { class: "faults", "aria-label": "Backends as this host sees them" });
	/** What helps, by what is wrong. @type {Map<string, string>} */
	const remedies = new Map();
	const revoke = h("button", { type: "button", onclick: () => replace(["hosts", hostRef(host), "revoke"], here().query) }, "Revoke");

	/** Of a silent host every cell says when it was probed last, and the same helps for all. @param {any} cell */
	const wrongOf = (cell) => (host.state === "online" ? `${cell.code ?? ""}\n${cell.detail ?? ""}` : (cell.code ?? ""));

	function cells() {
		return [...store.cells].flatMap(([id, row]) => {
			const cell = row.get(host.id), backend = store.backends.get(id);
			return cell && backend ? [{ backend, cell }] : [];
		}).sort((a, b) => cellLook(a.cell).rank - cellLook(b.cell).rank || a.backend.name.localeCompare(b.backend.name));
	}

	function draw() {
		host = store.hosts.get(host.id) ?? host;
		const seen = cells();
		const bad = seen.filter((each) => each.cell.status !== "healthy").length;
		fill(
			about,
			h("p", null, badge(hostLook(host))),
			facts([
				["Agent version", host.agent_version],
				["Kinds", host.kinds.map((/** @type {string} */ kind) => kindOf(kind).title).join(", ") || "none"],
				["Labels", labelText(host.labels) || "—"],
				["Joined", moment(host.joined_at)],
				["Last seen", host.state === "online" ? "now" : host.last_seen_at ? `${moment(host.last_seen_at)}, ${ago(host.last_seen_at)}` : "never"],
				["Attachments", h("a", { href: address(["volumes"], { host: host.name }) }, "volumes on this host")],
				["Id", h("code", null, host.id)],
			]),
		);
		say(head, seen.length === 0 ? "Backends" : bad === 0 ? `Backends: all ${seen.length} healthy` : `Backends: ${bad} of ${seen.length} not healthy`);
		none.hidden = seen.length > 0;
		say(
			none,
			host.state === "revoked"
				? "It was revoked: it probes nothing any more."
				: store.backends.size === 0
				? "There is no backend yet."
				: "No backend is for this host.",
		);
		keyed(list, seen, ({ backend }) => backend.id, () => h("li"), (element, { backend, cell }) => {
			const remedy = remedies.get(wrongOf(cell)) ?? "";
			const look = JSON.stringify([backend.name, cell, remedy]);
			if (/** @type {any} */ (element).stowageLook === look) return;
			const hadFocus = element.contains(document.activeElement);
			/** @type {any} */ (element).stowageLook = look;
			fill(element, seenLines(cell, { lead: h("a", { href: backendAddress(backend, [host.name]) }, backend.name), remedy }));
			if (hadFocus) element.querySelector("a")?.focus();
		});
		revoke.hidden = host.state === "revoked";
		void ask(seen.filter(({ cell }) => cell.code && !remedies.has(wrongOf(cell))));
	}

	/** Cells do not carry remedies; one backend is asked for each thing that is wrong. @param {any[]} wanted */
	async function ask(wanted) {
		const one = new Map(wanted.map((each) => [wrongOf(each.cell), each.backend]));
		for (const wrong of one.keys()) remedies.set(wrong, "");
		const queue = [...one];
		await Promise.all(Array.from({ length: AT_ONCE }, async () => {
			for (let next = queue.shift(); next; next = queue.shift()) {
				const [wrong, backend] = next;
				try {
					const { hosts } = await call("GET", `/v1/storage_backends/${part(backend.id)}/hosts`);
					const found = hosts.find((/** @type {any} */ each) => each.host_id === host.id);
					if (found?.remedy && wrongOf(found) === wrong) {
						remedies.set(wrong, found.remedy);
						draw();
					}
				} catch {
					remedies.delete(wrong);
				}
			}
		}));
	}

	const box = dialog({
		title: host.name,
		body: [about, head, none, list],
		tools: may("admin") ? [revoke] : [],
		call: () => ({ method: "GET", path: `/v1/hosts/${part(hostRef(host))}` }),
		onClose: () => stop(),
	});
	draw();
	const stop = watch((change) => {
		if (change.everything || change.hosts?.has(host.id) || change.backends?.size || change.cells?.some((each) => each.host_id === host.id)) draw();
	});
	return box.open();
}
