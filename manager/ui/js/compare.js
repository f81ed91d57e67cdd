// Before and after of an event, side by side.

/** @typedef {{path: string, before: any, after: any, turn: "same" | "changed" | "added" | "removed"}} Line */

/**
 * Both side by side, a line for every value below them; undefined where there is none.
 * @param {any} before @param {any} after @param {string} [path] @returns {Line[]}
 */
export function comparison(before, after, path = "") {
	if (isBranch(before) || isBranch(after)) {
		const [left, right] = [isBranch(before) ? before : {}, isBranch(after) ? after : {}];
		const keys = [...new Set([...Object.keys(left), ...Object.keys(right)])];
		return keys.flatMap((key) => comparison(left[key], right[key], path ? `${path}.${key}` : key));
	}
	if (path === "") return [];
	const turn = before === undefined
		? "added"
		: after === undefined
		? "removed"
		: JSON.stringify(before) === JSON.stringify(after)
		? "same"
		: "changed";
	return [{ path, before, after, turn }];
}

/** What has lines of its own: an object, or a list of objects. @param {any} value */
function isBranch(value) {
	if (Array.isArray(value)) return value.length > 0 && value.every(isBranch);
	return value !== null && typeof value === "object" && Object.keys(value).length > 0;
}
