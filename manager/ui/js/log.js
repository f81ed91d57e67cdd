// A part of the log, the newest first: pages of it as they are asked for, and what the stream adds on top.

import { call } from "./api.js";

/** Every type, as the API lists them. */
export const EVENT_TYPES = [
	"backend.created",
	"backend.updated",
	"backend.deleted",
	"backend.default_changed",
	"backend.credentials_rotated",
	"backend.initialized",
	"backend.health_changed",
	"volume.created",
	"volume.updated",
	"volume.resized",
	"volume.migrated",
	"volume.reverted",
	"volume.adopted",
	"volume.deleted",
	"volume.stray_deleted",
	"snapshot.created",
	"snapshot.migrated",
	"snapshot.deleted",
	"image.created",
	"image.updated",
	"image.migrated",
	"image.deleted",
	"attachment.opened",
	"attachment.closed",
	"host.joined",
	"host.left",
];

const PAGE = 50;

/**
 * @typedef {{subject: string, type: string, actor: string, since: string}} Filters  as the API takes them; empty: any
 */

/** A reading of the log under these filters. @param {Filters} filters */
export function reading(filters) {
	const query = new URLSearchParams(Object.entries(filters).filter(([, value]) => value));
	/** By sequence, all that is known. @type {Map<number, any>} */
	const known = new Map();
	/** @type {string | null} */
	let cursor = null;
	let isBegun = false;

	/** @param {string | null} at @returns {Promise<any>} */
	const page = (at) =>
		call("GET", `/v1/events?${new URLSearchParams([...query, ["order", "desc"], ["limit", String(PAGE)], ...(at ? [["cursor", at]] : [])])}`);

	/** @param {any[]} events */
	const take = (events) => {
		for (const each of events) known.set(Number(each.sequence), each);
	};

	/** @param {any} event */
	function fits(event) {
		return (!filters.type || event.type === filters.type) && (!filters.actor || event.actor === filters.actor) &&
			(!filters.subject || event.subject === filters.subject || event.subject.endsWith(`/${filters.subject}`)) &&
			(!filters.since || new Date(event.time) >= new Date(filters.since));
	}

	return {
		/** The newest first. @returns {any[]} */
		events: () => [...known.keys()].sort((a, b) => b - a).map((key) => known.get(key)),
		hasOlder: () => cursor !== null,
		/** The first page, or the next older one. Raises Problem. */
		async older() {
			const found = await page(isBegun ? cursor : null);
			take(found.items);
			cursor = found.next_cursor;
			isBegun = true;
		},
		/** After a gap in the stream: what came meanwhile. Raises Problem. */
		async catchUp() {
			const found = await page(null);
			const newest = Math.max(0, ...known.keys());
			// More came than a page holds: what lies below is no longer joined to it.
			if (found.items.length === PAGE && Number(found.items.at(-1).sequence) > newest) {
				known.clear();
				cursor = found.next_cursor;
			}
			take(found.items);
		},
		/** Whether it belongs here and is new. @param {any} event */
		add(event) {
			if (!fits(event) || known.has(Number(event.sequence))) return false;
			take([event]);
			return true;
		},
	};
}

/** The event of that sequence, which no address of the API has: page by page from the newest on. @param {number} sequence @param {() => boolean} isWanted @returns {Promise<any>} */
export async function eventAt(sequence, isWanted) {
	let at = "";
	do {
		const found = await call("GET", `/v1/events?order=desc&limit=500${at}`);
		const event = found.items.find((/** @type {any} */ each) => Number(each.sequence) === sequence);
		if (event) return event;
		if (found.items.length === 0 || Number(found.items.at(-1).sequence) < sequence) return null;
		at = found.next_cursor ? `&cursor=${encodeURIComponent(found.next_cursor)}` : "";
	} while (at && isWanted());
	return null;
}
