// What the page knows of the fleet, kept true by the stream of changes; views ask here and are told what has changed.

import { all, call, ended } from "./api.js";
import { connect } from "./live.js";

/**
 * @typedef {{backends?: Set<string>, hosts?: Set<string>, cells?: {backend_id: string, host_id: string}[], operations?: string[],
 *   event?: any, trends?: boolean, state?: boolean, everything?: boolean}} Change  everything: the lists were read anew
 */

export const store = {
	/** @type {{name: string, role: string, expires_at: string | null} | null} */ session: null,
	/** @type {any[]} */ kinds: [],
	/** @type {Map<string, any>} id → backend, the oldest first */ backends: new Map(),
	/** @type {Map<string, any>} id → host, revoked ones too */ hosts: new Map(),
	/** @type {Map<string, Map<string, any>>} backend id → host id → cell */ cells: new Map(),
	/** @type {Map<string, {full_in_days: number | null, samples: any[]}>} */ trends: new Map(),
	/** @type {"connecting" | "live" | "closed"} */ state: "connecting",
};

/** @type {Set<(change: Change) => void>} */
const watchers = new Set();

/** The watcher is told of every change until the returned function is called. @param {(change: Change) => void} watcher */
export function watch(watcher) {
	watchers.add(watcher);
	return () => {
		watchers.delete(watcher);
	};
}

/** @param {Change} change */
function tell(change) {
	for (const watcher of [...watchers]) watcher(change);
}

const RANK = { viewer: 0, operator: 1, admin: 2 };

/** Whether the token's role is enough. @param {"viewer" | "operator" | "admin"} role */
export function may(role) {
	return RANK[/** @type {keyof typeof RANK} */ (store.session?.role ?? "viewer")] >= RANK[role];
}

/** @param {string} kind */
export function kindOf(kind) {
	return store.kinds.find((each) => each.kind === kind) ??
		{ kind, title: kind, config_schema: { properties: {} }, credentials_schema: null, formats: [], discover_by: null, capabilities: [] };
}

/** The kinds have their schemas from now on; forms need them, lists do not. Raises Problem. */
export async function readSchemas() {
	if (!store.kinds.every((kind) => kind.config_schema)) store.kinds = await call("GET", "/v1/backend_kinds");
}

/** The backend of that name or id. @param {string} ref */
export function backendOf(ref) {
	return store.backends.get(ref) ?? [...store.backends.values()].find((each) => each.name === ref);
}

/** How an address names the backend or volume: by its name, unless that means something else there. @param {any} named @returns {string} */
export function refOf(named) {
	return named.name === "add" ? named.id : named.name;
}

/** The hosts that are not revoked. */
export function liveHosts() {
	return [...store.hosts.values()].filter((host) => host.state !== "revoked");
}

/** Frames that came while the lists were read; a list may be older than they are. @type {any[] | null} */
let early = null;

/** Whether the lists were asked for at all. */
let isLoaded = false;
/** @type {Promise<void>} */
let reading = Promise.resolve();

/** Everything is read, after whoever reads already. Raises Problem. */
export function load() {
	isLoaded = true;
	reading = reading.catch(() => {}).then(async () => {
		early = [];
		try {
			await read();
		} finally {
			const frames = early;
			early = null;
			for (const frame of frames) apply(frame);
		}
	});
	return reading;
}

async function read() {
	const [kinds, backends, hosts, matrix] = await Promise.all([
		store.kinds.length ? store.kinds : call("GET", "/v1/backend_kinds?schemas=false"),
		all("/v1/storage_backends"),
		all("/v1/hosts"),
		call("GET", "/v1/matrix"),
	]);
	store.kinds = kinds;
	store.backends = new Map(backends.map((each) => [each.id, each]));
	store.hosts = new Map(hosts.map((each) => [each.id, each]));
	store.cells = new Map();
	for (const row of matrix.rows) {
		const cells = new Map();
		row.cells.forEach((/** @type {any} */ cell, /** @type {number} */ n) => {
			if (cell) cells.set(matrix.hosts[n].id, cell);
		});
		store.cells.set(row.backend_id, cells);
	}
	tell({ everything: true });
	if (store.trends.size === 0 || Date.now() - trendsAt > TRENDS_EVERY_MS) void loadTrends();
}

/** Capacity's last day, which nobody must wait for. */
async function loadTrends() {
	trendsAt = Date.now();
	try {
		const { items } = await call("GET", "/v1/capacity");
		store.trends = new Map(items.map((/** @type {any} */ each) => [each.backend_id, each]));
		tell({ trends: true });
	} catch { /* The bars say what is so now; the trend comes with the next reading. */ }
}

/** What the API answered of a backend stands at once, before the stream says it too. @param {any} backend */
export function keep(backend) {
	if (!backend?.id || backend.version < (store.backends.get(backend.id)?.version ?? 0)) return;
	store.backends.set(backend.id, backend);
	tell({ backends: new Set([backend.id]) });
}

/** @param {string} id */
export function drop(id) {
	store.backends.delete(id);
	store.cells.delete(id);
	tell({ backends: new Set([id]) });
}

/** @param {any} changes */
function apply({ backends = [], gone = [], hosts = [], cells = [], operations = [] }) {
	for (const backend of backends) store.backends.set(backend.id, backend);
	for (const id of gone) {
		store.backends.delete(id);
		store.cells.delete(id);
	}
	for (const host of hosts) store.hosts.set(host.id, host);
	for (const { backend_id, host_id, ...cell } of cells) {
		const row = store.cells.get(backend_id) ?? new Map();
		store.cells.set(backend_id, row);
		if (cell.status === null) row.delete(host_id);
		else row.set(host_id, cell);
	}
	tell({
		backends: new Set([...backends.map((/** @type {any} */ each) => each.id), ...gone]),
		hosts: new Set(hosts.map((/** @type {any} */ each) => each.id)),
		cells,
		operations,
	});
}

const TRENDS_EVERY_MS = 10 * 60_000;
let trendsAt = Date.now();
let pauseMs = 2_000;
/** @type {Awaited<ReturnType<typeof connect>> | null} */
let stream = null;
/** How long the lists wait for the stream. When it comes later they are read once more, for what changed meanwhile was told to nobody. */
const STREAM_MS = 200;
let onState = () => {};

/** The worker is there, without a stream yet: that takes a moment in which other things can be asked. */
export async function prepareLive() {
	stream ??= await connect((message) => {
		if (message.type === "state") {
			const before = store.state;
			store.state = message.state;
			onState();
			if (message.state === "live") {
				pauseMs = 2_000;
				if (before !== "live" && isLoaded) void again();
			} else if (message.state === "closed" && store.session) void reopen();
			if (before !== message.state) tell({ state: true });
		} else if (message.type === "event") tell({ event: message.event });
		else if (message.type === "changes") early ? early.push(message.changes) : apply(message.changes);
		else if (message.type === "session") void whoIsIt();
		else void again();
		if (Date.now() - trendsAt > TRENDS_EVERY_MS) void loadTrends();
	});
}

/** The stream runs, or does not answer at once. @param {boolean} isNew whether somebody has just signed in */
export async function startLive(isNew) {
	await prepareLive();
	const answered = new Promise((resolve) => {
		onState = () => resolve(null);
		setTimeout(resolve, STREAM_MS);
	});
	if (isNew) stream?.reopen();
	else stream?.open();
	await answered;
}

/** Another tab has signed in, perhaps somebody else: what this one offers is his then. */
async function whoIsIt() {
	try {
		const session = await call("GET", "/v1/session");
		if (store.session && (session.name !== store.session.name || session.role !== store.session.role)) location.reload();
	} catch { /* The stream says when the manager is away. */ }
}

async function again() {
	try {
		await load();
	} catch { /* The stream is gone again, or the session: both have their own words. */ }
}

/** A stream that was refused: the session is over, or the manager is unwell and is asked again, more and more slowly. */
async function reopen() {
	try {
		const session = await call("GET", "/v1/session");
		if (session.role === null) {
			if (store.session) ended.handler();
			return;
		}
	} catch { /* It does not answer at all. */ }
	await new Promise((resolve) => setTimeout(resolve, pauseMs * (0.5 + Math.random())));
	pauseMs = Math.min(pauseMs * 2, 30_000);
	if (store.session) stream?.open();
}

/** Signed out: nothing of the fleet is kept. */
export function forget() {
	stream?.close();
	isLoaded = false;
	store.session = null;
	store.state = "closed";
	store.backends = new Map();
	store.hosts = new Map();
	store.cells = new Map();
	store.trends = new Map();
}
