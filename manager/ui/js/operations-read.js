// The operations that were read: all that are in flight, and pages of the others, the newest first.

import { all, call, part } from "./api.js";

const PAGE = 50;
/** Of more than these at once the lists are read instead of each. */
const MOST_SINGLES = 8;
const IN_FLIGHT = ["running", "undoing", "stuck"];

/** A reading under these filters; empty: any. @param {string} state @param {string} kind */
export function operationsRead(state, kind) {
	/** @type {Map<string, any>} */
	const known = new Map();
	/** @type {string | null} */
	let cursor = null;

	/** @param {string} [wanted] */
	const path = (wanted = state) =>
		`/v1/operations?${new URLSearchParams([...(wanted ? [["state", wanted]] : []), ...(kind ? [["kind", kind]] : [])])}`;

	/** @param {any} operation */
	function take(operation) {
		const before = known.get(operation.id);
		if (before && before.updated_at > operation.updated_at) return;
		if ((!state || operation.state === state) && (!kind || operation.kind === kind)) known.set(operation.id, operation);
		else known.delete(operation.id);
	}

	/** @param {string[]} ids */
	async function each(ids) {
		await Promise.all(ids.map(async (id) => {
			try {
				take(await call("GET", `/v1/operations/${part(id)}`));
			} catch (problem) {
				if (/** @type {any} */ (problem).status === 404) known.delete(id);
				else throw problem;
			}
		}));
	}

	/** The newest page, and all that goes on; pages that were read below it stay. */
	async function first() {
		const going = [...known.values()].filter((one) => IN_FLIGHT.includes(one.state)).map((one) => one.id);
		const lists = await Promise.all([
			call("GET", `${path()}&limit=${PAGE}`).then((page) => {
				if (known.size === 0) cursor = page.next_cursor;
				return page.items;
			}),
			...(state ? [] : IN_FLIGHT.map((one) => all(path(one)))),
		]);
		lists.flat().forEach(take);
		// What went on and is in none of the lists has ended meanwhile.
		const found = new Set(lists.flat().map((one) => one.id));
		await each(going.filter((id) => !found.has(id)));
	}

	return {
		/** The newest first: ids go with the time. @returns {any[]} */
		all: () => [...known.values()].sort((a, b) => (a.id < b.id ? 1 : -1)),
		hasOlder: () => cursor !== null,
		first,
		async older() {
			const page = await call("GET", `${path()}&limit=${PAGE}&cursor=${encodeURIComponent(cursor ?? "")}`);
			page.items.forEach(take);
			cursor = page.next_cursor;
		},
		/** These were written. @param {string[]} ids */
		again: (ids) => (ids.length > MOST_SINGLES ? first() : each(ids)),
	};
}
