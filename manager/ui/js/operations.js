// Operations as they are shown: what each is, how it stands, how far it has come.

import { h, say, set } from "./dom.js";
import { bytes, capital, words } from "./format.js";

import { subjectWord } from "./subjects.js";

/** A span of time in its two largest units: `1 h 5 min`. @param {number} seconds */
export function duration(seconds) {
	const whole = Math.max(0, Math.round(seconds));
	if (whole < 60) return `${whole} s`;
	const [unit, size, lower, part] = whole < 3_600 ? ["min", 60, "s", 1] : whole < 86_400 ? ["h", 3_600, "min", 60] : ["d", 86_400, "h", 3_600];
	const rest = Math.floor((whole % Number(size)) / Number(part));
	return `${Math.floor(whole / Number(size))} ${unit}${rest ? ` ${rest} ${lower}` : ""}`;
}

/** Every kind, as the API lists them. */
export const OPERATION_KINDS = [
	"backend.add",
	"backend.edit",
	"backend.delete",
	"backend.initialize",
	"backend.evacuate",
	"volume.create",
	"volume.delete",
	"volume.resize",
	"volume.attach",
	"volume.detach",
	"volume.migrate",
	"volume.revert",
];

/** @type {Record<string, import("./health.js").Look>} */
export const OPERATION_LOOKS = {
	stuck: { word: "Stuck", icon: "warning", tone: "bad", rank: 0 },
	undoing: { word: "Undoing", icon: "undo", tone: "fair", rank: 1 },
	running: { word: "Running", icon: "pending", tone: "todo", rank: 2 },
	failed: { word: "Failed", icon: "unreachable", tone: "bad", rank: 3 },
	cancelled: { word: "Cancelled", icon: "blank", tone: "none", rank: 4 },
	succeeded: { word: "Succeeded", icon: "healthy", tone: "good", rank: 5 },
};

/** @type {Record<string, import("./health.js").Look>} */
export const STEP_LOOKS = {
	pending: { word: "Not begun", icon: "blank", tone: "none", rank: 0 },
	running: { word: "Running", icon: "pending", tone: "todo", rank: 1 },
	done: { word: "Done", icon: "healthy", tone: "good", rank: 2 },
	undoing: { word: "Undoing", icon: "undo", tone: "fair", rank: 3 },
	undone: { word: "Undone", icon: "undo", tone: "none", rank: 4 },
	failed: { word: "Failed", icon: "unreachable", tone: "bad", rank: 5 },
};

/** What it means that an operation is stuck. */
export const STUCK =
	"Its undo has failed eight times, so what it did is still there in part and keeps its place locked. Look at its steps and at what they " +
	"say, put that right, and try again: the undo then goes on where it stopped.";

/** Not over yet, or over only for a person to look at. @param {any} operation */
export function isInFlight(operation) {
	return ["running", "undoing", "stuck"].includes(operation.state);
}

/** `volume.create` of an image → Create image. @param {any} operation */
export function operationTitle(operation) {
	return `${capital(words(operation.kind.split(".")[1]))} ${subjectWord(operation.subject)}`;
}

/** @param {any} operation @returns {import("./health.js").Look} */
export function operationLook(operation) {
	const look = OPERATION_LOOKS[operation.state] ?? OPERATION_LOOKS.running;
	return operation.state === "running" && operation.is_cancelled ? { ...look, word: "Being cancelled", tone: "fair" } : look;
}

/** Why it cannot be cancelled; empty when it perhaps can, which only the manager knows. @param {any} operation */
export function whyNotCancel(operation) {
	if (operation.state === "running") return operation.is_cancelled ? "it is being cancelled already" : "";
	return operation.state === "undoing" ? "it is being undone already" : `it is ${operation.state}`;
}

/** Its steps, and the one that is under way: the journal has a line of it when it is done. @param {any} operation @returns {any[]} */
export function stepsOf(operation) {
	const isTold = operation.steps.some((/** @type {any} */ each) => ["running", "undoing", "failed"].includes(each.state));
	return operation.state === "running" && !isTold
		? [...operation.steps, { name: "next step", state: "running", started_at: null, ended_at: null, error: null }]
		: operation.steps;
}

/** @param {any} operation */
export function hasProgress({ progress }) {
	return progress.total_bytes > 0 || progress.done_bytes > 0;
}

/** How far it has come, as a bar with words. `update` takes the operation as it is now. */
export function progressBar() {
	const bar = h("progress", { "aria-label": "Progress" });
	const said = h("span", { class: "hint" });
	const element = h("p", { class: "going" }, bar, said);
	return {
		element,
		/** @param {any} operation */
		update(operation) {
			const { done_bytes: done, total_bytes: total, rate_bytes_s: rate, eta_s: left } = operation.progress;
			element.hidden = !hasProgress(operation);
			set(bar, "max", total || null);
			set(bar, "value", total ? Math.min(done, total) : null);
			say(
				said,
				[
					total ? `${bytes(done)} of ${bytes(total)} (${Math.floor((done / total) * 100)} %)` : bytes(done),
					rate ? `${bytes(rate)}/s` : "",
					left !== null && left !== undefined ? `${duration(left)} left` : "",
				].filter(Boolean).join(" · "),
			);
		},
	};
}
