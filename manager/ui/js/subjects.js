// What events and operations are about: `volumes/ID` has a word, a name and, while it is there, an address.

import { call, part } from "./api.js";
import { address } from "./router.js";
import { refOf, store } from "./store.js";

/** @type {Record<string, string>} */
const WORDS = { storage_backends: "backend", volumes: "volume", images: "image", snapshots: "snapshot", hosts: "host" };
/** Those that have a name in a resource of their own. */
const READABLE = ["volumes", "images"];
/** How many names are looked up at a time. */
const AT_ONCE = 4;
/** How long a name is not asked for again that was not found: what is being made has none yet. */
const IN_VAIN_MS = 30_000;

/** Of what is not in the store; empty: looked for in vain. @type {Map<string, string>} */
const names = new Map();

/** @param {string} subject */
export function subjectWord(subject) {
	return WORDS[subject.split("/")[0]] ?? "thing";
}

/** Its name as far as it is known, else the beginning of its id. @param {string} subject */
export function subjectName(subject) {
	const id = subject.split("/").at(-1) ?? "";
	return store.backends.get(id)?.name ?? store.hosts.get(id)?.name ?? (names.get(subject) || `${id.slice(0, 8)}…`);
}

/** Where it is shown; null for what is gone, or has no place of its own. @param {string} subject @param {string} [name] */
export function subjectAddress(subject, name) {
	const [collection, id] = subject.split("/");
	const backend = store.backends.get(id), host = store.hosts.get(id);
	if (backend) return backendAddress(backend);
	if (host) return hostAddress(host);
	const known = name ?? names.get(subject);
	return collection === "volumes" && known ? address(["volumes", known]) : null;
}

/** @param {any} backend @param {string[]} more */
export function backendAddress(backend, more = []) {
	return address(["storage", refOf(backend), ...more]);
}

/** A host's place: by its name while that is its own, else by its id. @param {any} host @param {string[]} more @param {URLSearchParams} [query] */
export function hostAddress(host, more = [], query = undefined) {
	return address(["hosts", hostRef(host), ...more], query);
}

/** @param {any} host @returns {string} */
export function hostRef(host) {
	return host.state === "revoked" || host.name === "add" ? host.id : host.name;
}

/** An event tells the name of what it is about. @param {any} event */
export function heard(event) {
	if (event.data.name) names.set(event.subject, event.data.name);
}

/** The names of all of these are looked up that are not known; `onFound` is called after each that was. @param {Iterable<string>} subjects @param {() => void} onFound */
export async function lookUp(subjects, onFound) {
	const wanted = [...new Set(subjects)].filter((each) => {
		const id = each.split("/").at(-1) ?? "";
		return !names.has(each) && !store.backends.has(id) && !store.hosts.has(id);
	});
	for (const each of wanted) names.set(each, "");
	await Promise.all(Array.from({ length: AT_ONCE }, async () => {
		for (let subject = wanted.shift(); subject !== undefined; subject = wanted.shift()) {
			const name = await nameOf(subject);
			if (name) {
				names.set(subject, name);
				onFound();
			} else {setTimeout(() => {
					if (names.get(subject) === "") names.delete(subject);
				}, IN_VAIN_MS);}
		}
	}));
}

/** By what the log said of it last, which knows what is gone too; what is being made is not in the log yet. @param {string} subject @returns {Promise<string>} */
async function nameOf(subject) {
	const [collection, id] = subject.split("/");
	try {
		const { items } = await call("GET", `/v1/events?subject=${part(subject)}&order=desc&limit=1`);
		if (items.length > 0 || !READABLE.includes(collection)) return items[0]?.data.name ?? "";
		return (await call("GET", `/v1/${collection}/${part(id)}`)).name;
	} catch {
		return "";
	}
}

/**
 * The subject that a person means by `tank`, `volume web` or `storage_backends/ID`; null when there is none.
 * @param {string} text @returns {Promise<string | null>}
 */
export async function subjectOf(text) {
	if (/^[a-z_]+\/[0-9a-f-]{36}$/.test(text)) return text;
	const [, word, name] = /^(?:(backend|host|volume|image) )?(.+)$/.exec(text.trim()) ?? [];
	if (!name) return null;
	const is = (/** @type {string} */ wanted) => !word || word === wanted;
	const backend = is("backend") && [...store.backends.values()].find((each) => each.name === name);
	if (backend) return `storage_backends/${backend.id}`;
	// The live one of a name stands behind the revoked ones that had it.
	const host = is("host") &&
		[...store.hosts.values()].filter((each) => each.name === name).sort((a, b) => Number(a.state === "revoked") - Number(b.state === "revoked"))[0];
	if (host) return `hosts/${host.id}`;
	for (const collection of READABLE) {
		if (!is(WORDS[collection])) continue;
		try {
			const found = await call("GET", `/v1/${collection}/${part(name)}`);
			names.set(`${collection}/${found.id}`, found.name);
			return `${collection}/${found.id}`;
		} catch (error) {
			if (/** @type {import("./api.js").Problem} */ (error).status !== 404) throw error;
		}
	}
	return null;
}
