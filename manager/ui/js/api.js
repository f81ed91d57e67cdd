// The manager's API as any client uses it, with this browser's cookie.

/**
 * @typedef {{host?: string, code: string, detail: string, remedy?: string}} Fault
 * @typedef {{pointer: string, detail: string}} FieldError
 * @typedef {{headers?: Record<string, string>, signal?: AbortSignal}} SendOptions
 * @typedef {{method: string, path: string, body?: any, headers?: Record<string, string>}} Call  secrets in the body are Secret
 */

/** What the API refused, in its words. status 0: nobody answered. */
export class Problem extends Error {
	/** @param {any} document @param {number} status */
	constructor(document, status) {
		super(document.detail || document.title);
		this.status = status;
		/** @type {string} */ this.code = document.code ?? "";
		/** @type {string} */ this.title = document.title ?? "";
		/** @type {FieldError[]} */ this.errors = document.errors ?? [];
		/** @type {Fault[]} */ this.faults = document.faults ?? [];
		/** @type {Record<string, string>[]} */ this.blockers = document.blockers ?? [];
		/** @type {string | null} */ this.operation = document.operation ?? null;
	}
}

/** Its text goes out in a request and into nothing that is shown or copied. */
export class Secret {
	#text;
	/** @param {string} name @param {string} text */
	constructor(name, text) {
		this.name = name;
		this.#text = text;
	}
	toJSON() {
		return this.#text;
	}
}

/** Longer than the manager takes for anything, 30 s for a change and their hosts' time for a question. */
const ANSWER_MS = 90_000;

/** Called when the session is over. */
export const ended = { handler: () => {} };

/** The answer's body (null: none). Raises Problem. @param {string} method @param {string} path @param {any} [body] @param {SendOptions} [options] @returns {Promise<any>} */
export async function call(method, path, body, options) {
	return (await send(method, path, body, options)).body;
}

/** The same: {status, body, etag}.
 * @param {string} method @param {string} path @param {any} [body] @param {SendOptions} [options] */
export async function send(method, path, body, options = {}) {
	/** @type {Record<string, string>} */
	const headers = { Accept: "application/json", ...options.headers };
	if (body !== undefined) headers["Content-Type"] = "application/json";
	const signals = [AbortSignal.timeout(ANSWER_MS), ...(options.signal ? [options.signal] : [])];
	let response, text;
	try {
		response = await fetch(path, {
			method,
			headers,
			body: body === undefined ? undefined : JSON.stringify(body),
			signal: AbortSignal.any(signals),
			cache: "no-store",
		});
		text = await response.text();
	} catch (error) {
		if (options.signal?.aborted) throw error;
		throw new Problem({
			code: "offline",
			title: "The manager does not answer",
			detail: "The request did not get through. Whether it was carried out is not known: look before you repeat it.",
		}, 0);
	}
	/** @type {any} */
	let parsed = null;
	try {
		parsed = text ? JSON.parse(text) : null;
	} catch {
		parsed = { title: "The answer could not be read", detail: text.slice(0, 200) };
	}
	if (response.ok) return { status: response.status, body: parsed, etag: response.headers.get("ETag") };
	const problem = new Problem(parsed ?? { title: response.statusText, detail: `HTTP ${response.status}` }, response.status);
	if (response.status === 401 && path !== "/v1/session") ended.handler();
	throw problem;
}

/** Every item of a list, page by page. @param {string} path @param {AbortSignal} [signal] @returns {Promise<any[]>} */
export async function all(path, signal) {
	const items = [];
	let cursor = "";
	do {
		const page = await call("GET", `${path}${path.includes("?") ? "&" : "?"}limit=500${cursor}`, undefined, { signal });
		items.push(...page.items);
		cursor = page.next_cursor ? `&cursor=${encodeURIComponent(page.next_cursor)}` : "";
	} while (cursor);
	return items;
}

/** A part of an address. @param {string} ref */
export const part = encodeURIComponent;
