// Where the reader is: `#/storage/tank/hv1?status=degraded`. Every filter, sorting and opened thing has an address.

/** @typedef {{page: string, path: string[], query: URLSearchParams}} Place */

/** @returns {Place} */
export function here() {
	const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
	const [page, ...rest] = path.split("/").filter(Boolean).map(decode);
	return { page: page ?? "storage", path: rest, query: new URLSearchParams(query) };
}

/** @param {string} part */
function decode(part) {
	try {
		return decodeURIComponent(part);
	} catch {
		return part;
	}
}

/** The address of a place. @param {string[]} parts page first @param {URLSearchParams | Record<string, string>} [query] */
export function address(parts, query = {}) {
	const words = new URLSearchParams(query).toString();
	return `#/${parts.map(encodeURIComponent).join("/")}${words ? `?${words}` : ""}`;
}

/** The query has the value (empty: has it not), without a new entry in the history. @param {string} name @param {string} value */
export function put(name, value) {
	const { page, path, query } = here();
	if (value) query.set(name, value);
	else query.delete(name);
	replace([page, ...path], query);
}

/** The reader is there, without a new entry in the history. @param {string[]} parts @param {URLSearchParams} [query] */
export function replace(parts, query) {
	const next = address(parts, query);
	if (next === location.hash) return;
	history.replaceState(null, "", next);
	dispatchEvent(new HashChangeEvent("hashchange"));
}
