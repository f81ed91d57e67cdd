// Hosts as they are shown: how each stands, and which agents are behind the newest.

import { liveHosts, store } from "./store.js";

/** @type {Record<string, import("./health.js").Look>} */
const LOOKS = {
	offline: { word: "Offline", icon: "warning", tone: "fair", rank: 0 },
	online: { word: "Online", icon: "healthy", tone: "good", rank: 1 },
	revoked: { word: "Revoked", icon: "blank", tone: "none", rank: 2 },
};

/** @param {any} host @returns {import("./health.js").Look} */
export function hostLook(host) {
	return LOOKS[host.state] ?? LOOKS.offline;
}

/** The newest agent version in the fleet; empty without hosts. */
export function newestVersion() {
	return liveHosts().map((host) => host.agent_version).sort((a, b) => a.localeCompare(b, undefined, { numeric: true })).at(-1) ?? "";
}

/** How many of the backends that are for the host it finds healthy. @param {any} host */
export function healthyBackends(host) {
	let healthy = 0, all = 0;
	for (const row of store.cells.values()) {
		const cell = row.get(host.id);
		if (cell) {
			all += 1;
			if (cell.status === "healthy") healthy += 1;
		}
	}
	return { healthy, all };
}

/** The host of that name or id; of several with one name, which were revoked, the live one. @param {string} ref */
export function hostOf(ref) {
	return store.hosts.get(ref) ?? liveHosts().find((host) => host.name === ref);
}
