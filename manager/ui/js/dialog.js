// The contract of every dialog: it stays open until the change is done, shows what the API says where it belongs, and never loses
// what was typed to a slip of the Esc key. Errors live in it: a toast is inert while a modal dialog is open.

import { call, part, Problem } from "./api.js";
import { copyText } from "./copy.js";
import { announce, fill, h, icon, say, set } from "./dom.js";
import { toast } from "./toast.js";
import { draftOf, dropDraft, keepDraft } from "./drafts.js";
import { showErrors } from "./form.js";
import { words } from "./format.js";
import "./more.js";
import { asCli, asCurl } from "./request-text.js";

/**
 * @typedef {{
 *   title: string,
 *   body: import("./dom.js").Child,
 *   submit?: {label: string, class?: string, busy?: string},
 *   run?: (watch: (operation: any) => void) => Promise<any>,
 *   call?: () => import("./api.js").Call | null,
 *   tools?: HTMLElement[],
 *   fields?: () => import("./form.js").Field[],
 *   restore?: (typed: Record<string, any>) => void,
 *   isLeft?: () => boolean,
 *   onClose?: () => void,
 *   remedies?: (problem: Problem) => HTMLElement[],
 *   cancel?: string,
 * }} Options
 * run: makes the change; its value is the dialog's. watch: to be told of the operation that the change has become. call: the request
 * that run makes, to be copied. tools: more buttons of the footer. fields: where errors belong, and what is kept when the dialog is left.
 * restore: puts back what was typed, by pointer, where that takes more than to put each value into its field. isLeft: true when what was
 * typed lives on elsewhere. remedies: buttons that help with a problem.
 */

let numbers = 0;

/** A modal dialog; `open` gives what run gave, or undefined when it was left. @param {Options} options */
export function dialog(options) {
	const id = `dialog-${(numbers += 1)}`;
	const title = h("h2", { id: `${id}-title` }, options.title);
	const banner = h("div", { class: "banner bad", role: "alert", tabindex: "-1", hidden: true });
	const note = h("div", { class: "banner", role: "status", hidden: true });
	const copied = h("div", { class: "copied", hidden: true });
	const guard = h(
		"div",
		{ class: "banner fair guard", role: "alert", hidden: true },
		h("span", null, "Discard what you typed?"),
		h("button", { type: "button", onclick: keepEditing }, "Keep editing"),
		h("button", { type: "button", class: "danger", onclick: discard }, "Discard"),
	);
	const progress = h("p", { class: "progress", role: "status" });
	const submit = options.submit ? h("button", { type: "submit", class: options.submit.class ?? "main" }, options.submit.label) : null;
	const stop = h("button", { type: "button", hidden: true, onclick: cancelOperation }, "Stop it");
	const leave = h("button", { type: "button", onclick: ask }, options.cancel ?? (submit ? "Cancel" : "Close"));
	/** @type {HTMLFormElement} */
	const form = h(
		"form",
		{ novalidate: true, onsubmit: onSubmit, autocomplete: "off" },
		h("header", null, title, h("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: ask }, icon("close"))),
		// What can only be read has perhaps nothing to stop at for the Tab key, and is scrolled by the arrow keys then.
		h("div", { class: "content", ...(submit ? {} : { tabindex: "0", role: "group", "aria-label": "Details" }) }, banner, note, options.body),
		h(
			"footer",
			null,
			guard,
			copied,
			h(
				"div",
				{ class: "row" },
				options.call &&
					h(
						"div",
						{ class: "copy" },
						h("button", { type: "button", class: "quiet", onclick: () => copy("curl", asCurl) }, "Copy as curl"),
						h("button", { type: "button", class: "quiet", onclick: () => copy("CLI", asCli) }, "Copy as CLI"),
					),
				h("span", { class: "space" }),
				progress,
				stop,
				options.tools,
				leave,
				submit,
			),
		),
	);
	const element = h("dialog", { "aria-labelledby": `${id}-title`, oncancel: onCancel, onclose: onClose }, form);
	const leaveWord = leave.textContent ?? "";
	let isBusy = false, isDone = false, isClosed = false;
	/** Of the change that is under way, once it is one. */
	let operationId = "";
	/** @type {any} */
	let result;
	/** @type {(value: any) => void} */
	let resolve = () => {};

	/** @param {Event} event */
	async function onSubmit(event) {
		event.preventDefault();
		if (isBusy || !options.run || submit?.getAttribute("aria-disabled") === "true") return;
		const { run } = options;
		await working(options.submit?.busy ?? "Working…", async () => {
			result = await run(watchOperation);
			isDone = true;
		});
		if (isDone) close();
	}

	/** The work, with the dialog closed to all else meanwhile; what it raises is told. @param {string} said @param {() => Promise<void>} work */
	async function working(said, work) {
		if (isBusy) return;
		clear();
		busy(true, said);
		/** @type {Problem | null} */
		let problem = null;
		try {
			await work();
		} catch (error) {
			if (!(error instanceof Problem)) console.error(error);
			problem = error instanceof Problem ? error : new Problem({ title: "The page has failed", detail: String(error) }, 0);
		}
		busy(false);
		if (problem && element.open) tell(problem);
		else if (problem) toast(`${options.title}: ${problem.title}`, { detail: problem.message, isBad: true });
	}

	/** @param {boolean} isNow @param {string} [said] */
	function busy(isNow, said = "") {
		isBusy = isNow;
		operationId = "";
		set(form, "aria-busy", isNow ? "true" : null);
		if (submit) submit.disabled = isNow;
		stop.hidden = true;
		say(leave, leaveWord);
		say(progress, said);
	}

	/** A change that takes longer can be left to itself, or asked to turn back. @param {any} operation */
	function watchOperation(operation) {
		if (!isBusy) return;
		say(
			progress,
			operation.is_cancelled ? "Turning back…" : operation.state === "undoing" ? "Undoing what was done…" : `Under way, ${spent(operation)}…`,
		);
		if (operationId === operation.id) return;
		operationId = operation.id;
		stop.hidden = false;
		say(leave, "Go on in the background");
	}

	async function cancelOperation() {
		const id = operationId;
		stop.hidden = true;
		try {
			await call("POST", `/v1/operations/${part(id)}/cancel`);
			say(progress, "Turning back…");
		} catch (error) {
			say(progress, /** @type {Error} */ (error).message);
		}
	}

	/** What the API refused, in its words: at the fields, or above them. @param {Problem} problem */
	function tell(problem) {
		const rest = options.fields ? showErrors(options.fields(), problem.errors) : problem.errors;
		const atFields = problem.errors.length - rest.length;
		const isOnlyFields = problem.code === "invalid_field" && rest.length === 0 && atFields > 0;
		fill(
			banner,
			h(
				"p",
				null,
				h("strong", null, `${problem.title || "It was refused"}.`),
				" ",
				isOnlyFields ? (atFields === 1 ? "One field needs attention." : `${atFields} fields need attention.`) : problem.message,
			),
			problemParts({ ...problem, errors: rest }),
			problem.operation && h("p", null, h("a", { href: `#/operations/${problem.operation.split("/").at(-1)}` }, "What was done and undone")),
			options.remedies?.(problem),
		);
		banner.hidden = false;
		// A group takes no focus; its first control does.
		const wrong = form.querySelector("[aria-invalid='true']:not(fieldset), fieldset[aria-invalid='true'] :is(input, select)");
		(wrong instanceof HTMLElement ? wrong : banner).focus();
		banner.scrollIntoView({ block: "nearest" });
	}

	function clear() {
		banner.hidden = true;
		copied.hidden = true;
		if (options.fields) showErrors(options.fields(), []);
	}

	/** @param {string} what @param {(call: import("./api.js").Call) => string} write */
	async function copy(what, write) {
		const call = options.call?.();
		if (!call) return;
		const text = write(call);
		const area = h("textarea", { readonly: true, rows: "4", "aria-label": `The request as ${what}`, spellcheck: "false" });
		area.value = text;
		const said = h("p", { class: "hint", role: "status" });
		fill(copied, said, area);
		copied.hidden = false;
		say(said, (await copyText(area)) ? `Copied as ${what}.` : "Press Ctrl+C to copy.");
	}

	function isAtRisk() {
		return !isDone && !options.isLeft?.() && Boolean(options.fields?.().some((each) => each.isDirty()));
	}

	/** Leaves, unless something typed would be lost. */
	function ask() {
		if (isBusy && !operationId) return;
		if (!isBusy && isAtRisk() && guard.hidden) {
			guard.hidden = false;
			guard.querySelector("button")?.focus();
			return;
		}
		if (!isBusy && !guard.hidden) {
			keepEditing();
			return;
		}
		close();
	}

	function keepEditing() {
		guard.hidden = true;
		/** @type {HTMLElement | null} */ (form.querySelector(".content :is(input, select, textarea)"))?.focus();
	}

	function discard() {
		isDone = true;
		close();
	}

	/** @param {Event} event */
	function onCancel(event) {
		event.preventDefault();
		ask();
	}

	// Also after the third Esc in a row, which no page can refuse, and when the address leads elsewhere: the draft is what remains then.
	function onClose() {
		if (isClosed) return;
		isClosed = true;
		if (isAtRisk() && !isBusy) keepDraft(options.title, typed());
		else dropDraft(options.title);
		if (isBusy) toast("It goes on in the background", { detail: options.title });
		options.onClose?.();
		element.remove();
		resolve(result);
	}

	function typed() {
		const kept = (options.fields?.() ?? []).filter((each) => !each.isSecret && each.isDirty());
		return Object.fromEntries(kept.map((each) => [each.pointer, each.value()]));
	}

	/** @param {Record<string, any>} values */
	function restore(values) {
		if (options.restore) options.restore(values);
		else for (const each of options.fields?.() ?? []) if (each.pointer in values) each.put(values[each.pointer]);
	}

	function close() {
		if (element.open) element.close();
		// At once: the event comes later, when somebody else may be signed in.
		onClose();
	}

	function startOver() {
		dropDraft(options.title);
		for (const each of options.fields?.() ?? []) each.reset();
		note.hidden = true;
		keepEditing();
	}

	/** @type {any} */ (element).stowageClose = close;
	return {
		element,
		tell,
		clear,
		close,
		/** A notice above the fields that is no error. @param {...import("./dom.js").Child} children */
		notice(...children) {
			fill(note, ...children);
			note.hidden = children.length === 0;
		},
		/** The submit button's reason for being closed; empty opens it. @param {string} why */
		refuse(why) {
			if (submit) {
				set(submit, "aria-disabled", why ? "true" : null);
				set(submit, "title", why || null);
			}
		},
		/** @param {() => Promise<void>} work @param {string} said */
		during: (work, said) => working(said, work),
		/** @returns {Promise<any>} */
		open() {
			document.body.append(element);
			const draft = draftOf(options.title);
			if (draft) {
				restore(draft);
				fill(note, "What you had typed is back, but for passwords. ", h("button", { type: "button", onclick: startOver }, "Start over"));
				note.hidden = false;
			}
			element.showModal();
			const first = form.querySelector(".content :is(input, select, textarea):not([type=hidden])");
			(first instanceof HTMLElement ? first : leave).focus();
			announce(options.title);
			return new Promise((done) => {
				resolve = done;
			});
		},
	};
}

/** What a problem has to say beside its sentence. @param {{errors: import("./api.js").FieldError[], faults: import("./api.js").Fault[], blockers: Record<string, string>[]}} problem */
export function problemParts({ errors, faults, blockers }) {
	return [
		errors.length > 0 && h("ul", null, errors.map((each) => h("li", null, `${each.pointer}: ${each.detail}`))),
		faultList(faults),
		blockers.length > 0 &&
		h(
			"ul",
			{ class: "blockers" },
			blockers.map((each) => h("li", null, h("strong", null, each.name ?? each.id), ` ${words(each.type ?? "")}`, each.reason && `: ${each.reason}`)),
		),
	];
}

/** @param {import("./api.js").Fault[]} faults */
export function faultList(faults) {
	return faults.length > 0 &&
		h(
			"ul",
			{ class: "faults" },
			faults.map((fault) =>
				h(
					"li",
					null,
					h("p", null, fault.host && h("strong", null, `${fault.host}: `), h("span", { class: "code" }, words(fault.code)), " ", fault.detail),
					fault.remedy && h("p", { class: "remedy" }, fault.remedy),
				)
			),
		);
}

/** How long it takes already. @param {any} operation */
function spent(operation) {
	return `for ${Math.max(1, Math.round((Date.now() - new Date(operation.created_at).getTime()) / 1000))} s`;
}

/** A list of names and values. @param {[string, import("./dom.js").Child][]} rows */
export function facts(rows) {
	return h("dl", { class: "facts" }, rows.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}
