// Operations under way on volumes: asked for once a second while somebody looks, and shown with their bytes, rate and end.

import { call, part, send } from "../api.js";
import { announce, h, say, set } from "../dom.js";
import { toast } from "../toast.js";
import { progressBar } from "../operations.js";
import { may } from "../store.js";
import { operationWords } from "./volume-look.js";

const LOOK_MS = 1_000;
/** Of many under way, those are asked for that were longest not: a hundred requests a second would help nobody. */
const AT_ONCE = 10;
/** How long a change is waited for in its dialog: what is refused at once is said there, what takes longer goes on in its row. */
const WAIT = { Prefer: "wait=1" };

/** The change is done, or goes on as `operation`. Raises Problem.
 * @param {string} method @param {string} path @param {any} [body] @param {Record<string, string>} [headers]
 * @returns {Promise<{answer: any, operation: string | undefined}>} */
export async function begin(method, path, body, headers = {}) {
	const { status, body: answer } = await send(method, path, body, { headers: { ...WAIT, ...headers } });
	return status === 202 ? { answer: null, operation: answer.id } : { answer, operation: undefined };
}

/**
 * Keeps the wanted operations known; call `nudge` when there may be new ones.
 * @param {{wanted: () => Iterable<string>, onChange: (ids: Set<string>) => void, onEnd: (id: string, operation: any) => void}} options
 *   wanted: their ids. onEnd: it has ended; null where it is not known any more
 */
export function tracker({ wanted, onChange, onEnd }) {
	/** @type {Map<string, any>} */
	const known = new Map();
	/** @type {Map<string, number>} */
	const seen = new Map();
	let timer = 0, isLooking = false, isOver = false;

	async function look() {
		timer = 0;
		const ids = new Set(wanted());
		for (const id of known.keys()) {
			if (!ids.has(id)) {
				known.delete(id);
				seen.delete(id);
			}
		}
		if (isOver || document.hidden || ids.size === 0) return;
		isLooking = true;
		const due = [...ids].sort((a, b) => (seen.get(a) ?? 0) - (seen.get(b) ?? 0)).slice(0, AT_ONCE);
		await Promise.all(due.map(ask));
		isLooking = false;
		if (isOver) return;
		onChange(new Set(due));
		timer ||= setTimeout(look, LOOK_MS);
	}

	/** @param {string} id */
	async function ask(id) {
		seen.set(id, Date.now());
		try {
			const operation = await call("GET", `/v1/operations/${part(id)}`);
			known.set(id, operation);
			if (["succeeded", "failed", "cancelled"].includes(operation.state) && !isOver) onEnd(id, operation);
		} catch (problem) {
			// Whoever does not answer is asked again; what is gone has ended.
			if (/** @type {import("../api.js").Problem} */ (problem).status === 404 && !isOver) onEnd(id, null);
		}
	}

	const nudge = () => {
		if (!timer && !isLooking && !isOver) void look();
	};
	document.addEventListener("visibilitychange", nudge);
	return {
		nudge,
		/** @param {string} id */
		get: (id) => known.get(id),
		end() {
			isOver = true;
			clearTimeout(timer);
			document.removeEventListener("visibilitychange", nudge);
		},
	};
}

/** The id in an operation's path; null: none. @param {string | null} path */
export function idOf(path) {
	return path ? (path.split("/").at(-1) ?? null) : null;
}

/** A line about an operation on `name`; `drawProgress` fills it. @param {string} id @param {string} name */
export function progressLine(id, name) {
	const bar = progressBar();
	const said = h("span", null, "Under way");
	const stop = h("button", {
		type: "button",
		class: "small",
		hidden: true,
		"aria-label": `Cancel what is under way on ${name}`,
		onclick: async () => drawProgress(element, await cancel(id, name)),
	}, "Cancel");
	const element = h(
		"div",
		{ class: "working", role: "group", "aria-label": `Under way on ${name}` },
		said,
		stop,
		h("a", { class: "hint", href: `#/operations/${part(id)}`, "aria-label": `Steps of what is under way on ${name}` }, "Steps"),
		bar.element,
	);
	bar.element.hidden = true;
	/** @type {any} */ (element).stowageDraw = (/** @type {any} */ operation) => {
		say(said, operationWords(operation));
		bar.update(operation);
		stop.hidden = !may("operator") || operation.state !== "running" || operation.is_cancelled;
		// What a cancelled delete leaves is not what one hopes for.
		set(
			stop,
			"title",
			operation.kind === "volume.delete"
				? "Only puts it off: the volume cannot be used any more"
				: "Turns back at the next place where that is possible",
		);
	};
	return element;
}

/** @param {Element} line @param {any} operation undefined: not known yet */
export function drawProgress(line, operation) {
	if (operation) /** @type {any} */ (line).stowageDraw(operation);
}

/** The operation as it is then. @param {string} id @param {string} name */
async function cancel(id, name) {
	try {
		const operation = await call("POST", `/v1/operations/${part(id)}/cancel`);
		announce(`What is under way on ${name} turns back`);
		return operation;
	} catch (problem) {
		const { message } = /** @type {Error} */ (problem);
		if (document.querySelector("dialog[open]")) announce(message);
		else toast("It could not be cancelled", { detail: message, isBad: true });
		return undefined;
	}
}
