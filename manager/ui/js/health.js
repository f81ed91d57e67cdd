// Statuses as they are shown: a word, an icon and a tone each, never a colour alone.

import { h, icon } from "./dom.js";
import { words } from "./format.js";

/** @typedef {{word: string, icon: import("./dom.js").IconName, tone: "good" | "fair" | "bad" | "none" | "todo", rank: number}} Look */

/** @type {Record<string, Look>} */
const LOOKS = {
	stuck: { word: "Stuck", icon: "unreachable", tone: "bad", rank: 0 },
	unreachable: { word: "Unreachable", icon: "unreachable", tone: "bad", rank: 1 },
	misconfigured: { word: "Misconfigured", icon: "warning", tone: "fair", rank: 2 },
	degraded: { word: "Degraded", icon: "warning", tone: "fair", rank: 3 },
	needs_initialization: { word: "Needs initialization", icon: "blank", tone: "todo", rank: 4 },
	unknown: { word: "Unknown", icon: "unknown", tone: "none", rank: 5 },
	pending: { word: "Pending", icon: "pending", tone: "none", rank: 6 },
	creating: { word: "Being added", icon: "pending", tone: "none", rank: 7 },
	deleting: { word: "Being removed", icon: "pending", tone: "none", rank: 8 },
	healthy: { word: "Healthy", icon: "healthy", tone: "good", rank: 9 },
};

/** Faults of a storage that answers, but not to what it is asked: the config is wrong, or the server's. */
const CONFIGURATION = new Set([
	"auth_failed",
	"needs_credentials",
	"export_not_found",
	"share_not_found",
	"target_not_found",
	"lun_not_found",
	"path_not_found",
	"not_a_directory",
	"not_a_mountpoint",
	"permission_denied",
	"read_only",
	"tool_missing",
	"option_rejected",
	"version_rejected",
	"marker_mismatch",
	"marker_missing",
	"foreign_data",
	"wrong_device",
	"kind_unsupported",
]);

/** @param {string} status @param {string | null} [code] @returns {string} */
function name(status, code) {
	if (code === "needs_initialization" && status !== "healthy") return "needs_initialization";
	return status === "unreachable" && code && CONFIGURATION.has(code) ? "misconfigured" : status;
}

/** How a backend stands: its state where that says more than its health. @param {any} backend */
export function statusOf(backend) {
	const isState = ["stuck", "needs_initialization", "creating", "deleting"].includes(backend.state);
	return isState ? backend.state : name(backend.health.status, backend.health.code);
}

/** @param {any} backend @returns {Look} */
export function lookOf(backend) {
	return LOOKS[statusOf(backend)] ?? LOOKS.unknown;
}

/** @param {any} cell @returns {Look} */
export function cellLook(cell) {
	return LOOKS[name(cell.status, cell.code)] ?? LOOKS.unknown;
}

/** The statuses that can be filtered by, the worst first. */
export const STATUSES = Object.entries(LOOKS).map(([value, look]) => ({ value, word: look.word }));

/** Why a backend is not healthy, in one sentence; empty when it is. @param {any} backend */
export function reasonOf(backend) {
	if (backend.state === "stuck") return "An undo failed; a person must look at its operation";
	if (backend.state === "needs_initialization") return "The LUN is blank: look at it and initialize it";
	if (backend.health.status === "healthy") return "";
	return backend.health.detail || (backend.health.code ? words(backend.health.code) : "");
}

/** @param {Look} look @param {string} [title] */
export function badge(look, title) {
	return h("span", { class: `badge ${look.tone}`, title }, icon(look.icon), look.word);
}

/** Whether a person should look. @param {any} backend */
export function needsAttention(backend) {
	return !["good", "none"].includes(lookOf(backend).tone) || statusOf(backend) === "unknown";
}
