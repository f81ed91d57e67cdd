// One operation: its steps with their times and errors, what became of it, and what can be done about it.

import { call, part, Problem } from "../api.js";
import { dialog, facts, problemParts } from "../dialog.js";
import { fill, h, icon, keyed, set } from "../dom.js";
import { actorWords } from "../events.js";
import { ago, moment, words } from "../format.js";
import { badge } from "../health.js";
import {
	duration,
	hasProgress,
	isInFlight,
	operationLook,
	operationTitle,
	progressBar,
	STEP_LOOKS,
	stepsOf,
	STUCK,
	whyNotCancel,
} from "../operations.js";
import { paced } from "../pace.js";
import { whileVisible } from "../habits.js";
import { here, replace } from "../router.js";
import { may, watch } from "../store.js";
import { lookUp, subjectAddress, subjectName, subjectWord } from "../subjects.js";

const LOOK_MS = 1_000;

/** @param {any} given the operation as it was read @returns {Promise<any>} */
export function showOperation(given) {
	let operation = given;
	const about = h("div"), stuck = h("p", { class: "banner bad", hidden: true }, icon("warning"), h("span", null, STUCK));
	const bar = progressBar();
	const steps = h("ol", { class: "steps", "aria-label": "Steps" });
	const outcome = h("div");
	const cancel = h("button", {
		type: "button",
		onclick: () => {
			if (cancel.getAttribute("aria-disabled") !== "true") to("cancel");
		},
	}, "Cancel the operation");
	const retry = h("button", { type: "button", class: "main", onclick: () => to("retry") }, "Try again");
	/** @param {string} what */
	const to = (what) => replace(["operations", operation.id, what], here().query);
	let shown = "";

	function draw() {
		const { id, subject, state, error, result } = operation;
		const isOver = !isInFlight(operation), place = subjectAddress(subject);
		bar.update(operation);
		if (isOver) bar.element.hidden = true;
		const look = JSON.stringify([operation, subjectName(subject), place, ago(operation.updated_at)]);
		if (look === shown) return;
		shown = look;
		const spent = (new Date(operation.updated_at).getTime() - new Date(operation.created_at).getTime()) / 1000;
		fill(
			about,
			h("p", null, badge(operationLook(operation))),
			facts([
				["Subject", [`${subjectWord(subject)} `, place ? h("a", { href: place }, subjectName(subject)) : subjectName(subject)]],
				["Kind", h("code", null, operation.kind)],
				["Actor", actorWords(operation.actor)],
				["Begun", `${moment(operation.created_at)}, ${ago(operation.created_at)}`],
				[
					isOver ? "Ended" : "Last heard of",
					`${moment(operation.updated_at)}${isOver ? `, ${spentWords(spent)}` : `, ${ago(operation.updated_at)}`}`,
				],
				["Id", h("code", null, id)],
			]),
		);
		stuck.hidden = state !== "stuck";
		keyed(
			steps,
			stepsOf(operation),
			(step) => step.name,
			() => h("li"),
			(element, step) =>
				fill(
					element,
					h(
						"p",
						null,
						badge(STEP_LOOKS[step.state] ?? STEP_LOOKS.pending),
						" ",
						h("strong", null, words(step.name)),
						step.started_at &&
							h(
								"span",
								{ class: "hint", title: moment(step.started_at) },
								` ${clock(step.started_at)}${step.ended_at ? `, ${tookWords(step)}` : ""}`,
							),
					),
					step.error && h("p", { class: "step-error" }, step.error),
				),
		);
		fill(
			outcome,
			error &&
				h(
					"div",
					{ class: "banner bad outcome" },
					h("p", null, h("strong", null, state === "stuck" ? "What failed first" : "Why it failed"), ` ${error.detail}`),
					problemParts(error),
				),
			result && Object.keys(result).length > 0 &&
				[
					h("h3", null, "Result"),
					facts(
						Object.entries(result).map((
							[key, value],
						) => /** @type {[string, any]} */ ([words(key), typeof value === "string" ? value : h("code", null, JSON.stringify(value))])),
					),
				],
		);
		const why = whyNotCancel(operation);
		cancel.hidden = isOver || state === "stuck";
		set(cancel, "aria-disabled", why ? "true" : null);
		set(cancel, "title", why ? `Not now: ${why}` : null);
		retry.hidden = state !== "stuck";
	}

	const reads = paced(LOOK_MS, async () => {
		try {
			operation = await call("GET", `/v1/operations/${part(operation.id)}`);
			draw();
		} catch (problem) {
			if (problem instanceof Problem && problem.status === 404) box.tell(problem);
		}
	});
	const box = dialog({
		title: operationTitle(operation),
		body: [about, stuck, bar.element, h("h3", null, "Steps"), steps, outcome],
		tools: may("operator") ? [cancel, retry] : [],
		call: () => ({ method: "GET", path: `/v1/operations/${operation.id}` }),
		onClose: () => {
			stop();
			reads.stop();
			endLooking();
		},
	});
	draw();
	void lookUp([operation.subject], draw);
	const stop = watch((change) => {
		if (change.everything || change.operations?.includes(operation.id)) reads.ask();
	});
	const endLooking = whileVisible(LOOK_MS, () => {
		if (operation.state === "running" && hasProgress(operation)) reads.ask();
		else draw();
	});
	return box.open();
}

/** @param {string} time */
function clock(time) {
	return new Date(time).toLocaleTimeString(undefined, { timeStyle: "medium" });
}

/** @param {any} step */
function tookWords(step) {
	const ms = new Date(step.ended_at).getTime() - new Date(step.started_at).getTime();
	return spentWords(ms / 1000);
}

/** @param {number} seconds */
function spentWords(seconds) {
	return seconds < 1 ? "in less than a second" : `in ${duration(seconds)}`;
}
