// The manager's API as any client uses it, with this browser's cookie.

/**
 * @typedef {{host?: string, code: string, detail: string, remedy?: string}} Fault
 * @typedef {{pointer: string, detail: string}} FieldError
 * @typedef {{method: string, path: string, body?: any}} Call  secrets in the body are Secret
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
  constructor(name, text) { this.name = name; this.#text = text; }
  toJSON() { return this.#text; }
}

/** Called when the session is over. */
export const ended = { handler: () => {} };

/**
 * The answer's body (null: none). Raises Problem.
 * @param {string} method @param {string} path @param {any} [body]
 * @param {{headers?: Record<string, string>, signal?: AbortSignal, onProgress?: (operation: any) => void}} [options]
 *   onProgress: called with the operation while a change that takes longer goes on
 * @returns {Promise<any>}
 */
export async function call(method, path, body, options = {}) {
  const { body: answer, status } = await send(method, path, body, options);
  return status === 202 ? await finished(answer.id, options) : answer;
}

/** The same, without waiting: {status, body, etag}. @param {string} method @param {string} path @param {any} [body] @param {{headers?: Record<string, string>, signal?: AbortSignal}} [options] */
export async function send(method, path, body, options = {}) {
  /** @type {Record<string, string>} */
  const headers = { Accept: "application/json", ...options.headers };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response, text;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal: options.signal, cache: "no-store" });
    text = await response.text();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem({ code: "offline", title: "The manager does not answer", detail: "The request did not get through. Whether it was carried out is not known: look before you repeat it." }, 0);
  }
  /** @type {any} */
  let parsed = null;
  try { parsed = text ? JSON.parse(text) : null; } catch { parsed = { title: "The answer could not be read", detail: text.slice(0, 200) }; }
  if (response.ok) return { status: response.status, body: parsed, etag: response.headers.get("ETag") };
  const problem = new Problem(parsed ?? { title: response.statusText, detail: `HTTP ${response.status}` }, response.status);
  if (response.status === 401 && path !== "/v1/session") ended.handler();
  throw problem;
}

/** What became of an operation. Raises Problem when it failed. @param {string} id @param {{onProgress?: (operation: any) => void, signal?: AbortSignal}} options */
async function finished(id, { onProgress, signal }) {
  for (;;) {
    const operation = await call("GET", `/v1/operations/${id}`, undefined, { signal });
    onProgress?.(operation);
    if (operation.state === "succeeded") return operation.result;
    if (operation.state !== "running" && operation.state !== "undoing") {
      throw new Problem({ title: `The operation ${operation.state === "stuck" ? "is stuck" : "failed"}`, operation: `/v1/operations/${id}`, ...operation.error }, 422);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
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

/** The call as a line for a shell; a secret is a word to be replaced. @param {Call} call */
export function asCurl({ method, path, body }) {
  const data = body === undefined ? "" : ` \\\n  -H 'Content-Type: application/json' --data ${quoted(shown(body, (name) => `<${name}>`))}`;
  return `curl -sS -X ${method} ${quoted(location.origin + path)} \\\n  -H "Authorization: Bearer $STOWAGE_TOKEN"${data}`;
}

/** The call for the stowage command, which asks for secrets itself. @param {Call} call */
export function asCli({ method, path, body }) {
  const data = body === undefined ? "" : ` --data ${quoted(shown(body, (name) => `<prompt:${name}>`))}`;
  return `stowage api --url ${quoted(location.origin)} ${method} ${quoted(path)}${data}`;
}

/** @param {any} body @param {(name: string) => string} hidden */
function shown(body, hidden) {
  /** @param {any} value @returns {any} */
  const walk = (value) => {
    if (value instanceof Secret) return hidden(value.name);
    if (Array.isArray(value)) return value.map(walk);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, walk(each)]));
    return value;
  };
  return JSON.stringify(walk(body));
}

/** @param {string} text */
function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
