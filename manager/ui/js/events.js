// What an event of the log says, in words, and what it changed.

import { bytes, words } from "./format.js";
import { store } from "./store.js";

/** @typedef {{words: string, tone: "good" | "fair" | "bad" | "none"}} Said  words: what follows on the name */

/** @type {Record<string, (event: any, by: string) => string>} */
const SAID = {
	"backend.created": (_, by) => `added ${by}`,
	"backend.updated": (event, by) => `${stateTurn(event) ?? "changed"} ${by}${whatOf(event)}`,
	"backend.deleted": (_, by) => `removed ${by}`,
	"backend.default_changed": (_, by) => `made the default ${by}`,
	"backend.credentials_rotated": (_, by) => `password rotated ${by}`,
	"backend.initialized": (_, by) => `initialized ${by}`,
	"volume.created": ({ data }, by) => `volume${sizeOf(data)} made ${by}`,
	"volume.updated": (event, by) => `volume changed ${by}${whatOf(event)}`,
	"volume.resized": ({ data }, by) => `volume resized ${by}${turn(data, "size_bytes", bytes)}`,
	"volume.migrated": ({ data }, by) => `volume moved ${by}${turn(data, "backend_id", backendName)}`,
	"volume.reverted": (_, by) => `volume turned back to a snapshot ${by}`,
	"volume.adopted": (_, by) => `volume that was found on the storage taken over ${by}`,
	"volume.deleted": (_, by) => `volume deleted ${by}`,
	"volume.stray_deleted": (_, by) => `stray bytes deleted from the storage ${by}`,
	"snapshot.created": (_, by) => `snapshot taken ${by}`,
	"snapshot.migrated": ({ data }, by) => `snapshot moved ${by}${turn(data, "backend_id", backendName)}`,
	"snapshot.deleted": (_, by) => `snapshot deleted ${by}`,
	"image.created": (_, by) => `image made ${by}`,
	"image.updated": (event, by) => `image changed ${by}${whatOf(event)}`,
	"image.migrated": ({ data }, by) => `image moved ${by}${turn(data, "backend_id", backendName)}`,
	"image.deleted": (_, by) => `image deleted ${by}`,
	"attachment.opened": ({ data }, by) => `attached to ${data.host ?? "a host"} ${by}${data.after?.mode === "ro" ? ", to read only" : ""}`,
	"attachment.closed": ({ data }, by) =>
		`detached from ${data.host ?? "a host"} ${by}${data.is_confirmed === false ? ", without a word from that host" : ""}`,
	"host.joined": () => "joined the fleet",
	"host.left": (_, by) => `revoked ${by}`,
};

/** What an event says, in words. @param {any} event @returns {Said} */
export function eventWords(event) {
	const { type, data } = event;
	if (type === "backend.health_changed") {
		const [before, after] = [data.before?.health?.status, data.after?.health?.status];
		const why = data.after?.health?.detail;
		const tone = after === "healthy" ? "good" : after === "unreachable" ? "bad" : after === "degraded" ? "fair" : "none";
		return { words: `${before ?? "unknown"} → ${after ?? "unknown"}${why && after !== "healthy" ? `: ${why}` : ""}`, tone };
	}
	const by = `by ${actorWords(event.actor)}`;
	const [what, did] = type.split(".");
	// A newer manager may know more types than this page.
	const said = SAID[type]?.(event, by) ?? `${what} ${words(did)} ${by}`;
	return { words: said, tone: data.is_confirmed === false ? "fair" : ["deleted", "stray_deleted", "left", "closed"].includes(did) ? "none" : "good" };
}

/** @type {Record<string, import("./dom.js").IconName>} */
export const TONE_ICONS = { good: "healthy", bad: "unreachable", fair: "warning", none: "blank" };

/** `token:admin` → admin. @param {string} actor */
export function actorWords(actor) {
	return actor === "system" ? "Stowage itself" : actor.replace(/^(token|host):/, "");
}

/** @param {any} event */
function stateTurn({ data }) {
	const [before, after] = [data.before?.state, data.after?.state];
	if (before === after) return null;
	return after === "draining" ? "set to drain" : before === "draining" && after === "ready" ? "open for new volumes again" : null;
}

/** The fields that were changed, but for those that change with every change. @param {any} event */
function whatOf({ data }) {
	const [before, after] = [data.before ?? {}, data.after ?? {}];
	const isChanged = (/** @type {string} */ key) => JSON.stringify(before[key]) !== JSON.stringify(after[key]);
	const changed = Object.keys(after).filter((key) => isChanged(key) && !["version", "generation", "state", "updated_at"].includes(key));
	return changed.length === 0 ? "" : `: ${changed.map(words).join(", ")}`;
}

/** @param {any} data */
function sizeOf(data) {
	return data.after?.size_bytes ? ` of ${bytes(data.after.size_bytes)}` : "";
}

/** @param {any} data @param {string} field @param {(value: any) => string} say */
function turn(data, field, say) {
	const [before, after] = [data.before?.[field], data.after?.[field]];
	return before !== undefined && after !== undefined && before !== after ? `: ${say(before)} → ${say(after)}` : "";
}

/** @param {string} id */
function backendName(id) {
	return store.backends.get(id)?.name ?? "a backend that is gone";
}
