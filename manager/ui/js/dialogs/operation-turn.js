// Cancel an operation, or try a stuck one again: both say what will come of it.

import { call, part } from "../api.js";
import { dialog } from "../dialog.js";
import { h } from "../dom.js";
import { toast } from "../toast.js";
import { operationTitle, STUCK } from "../operations.js";
import { subjectName } from "../subjects.js";

/** What a cancelled one leaves that is more than nothing. @type {Record<string, string>} */
const LEFT = {
	"backend.evacuate": "What has been moved by then stays where it was moved to.",
	"volume.delete": "This only puts it off: the volume cannot be used any more, and its bytes go later.",
};

/** @param {any} operation @returns {Promise<any>} */
export function cancelOperation(operation) {
	const path = `/v1/operations/${part(operation.id)}/cancel`;
	return dialog({
		title: "Cancel this operation?",
		body: [
			h(
				"p",
				null,
				h("strong", null, `${operationTitle(operation)} ${subjectName(operation.subject)}`),
				` turns back at the next place where it can, and undoes what it did. ${LEFT[operation.kind] ?? "Nothing of it is left then."}`,
			),
			h(
				"p",
				{ class: "hint" },
				"Past the point from which it cannot go back, it is refused. Whoever waits for its answer is told that it was cancelled.",
			),
		],
		submit: { label: "Cancel the operation", class: "danger", busy: "Asking it to turn back…" },
		cancel: "Let it go on",
		call: () => ({ method: "POST", path }),
		async run() {
			const answer = await call("POST", path);
			setTimeout(() => toast("The operation is being cancelled", { detail: "It turns back as soon as it can." }));
			return answer;
		},
	}).open();
}

/** @param {any} operation @returns {Promise<any>} */
export function retryOperation(operation) {
	const path = `/v1/operations/${part(operation.id)}/retry`;
	const last = operation.steps.filter((/** @type {any} */ each) => each.error);
	return dialog({
		title: "Try the undo again?",
		body: [
			h("p", null, h("strong", null, `${operationTitle(operation)} ${subjectName(operation.subject)}`), " is stuck."),
			h("p", null, STUCK),
			last.length > 0 &&
			h("ul", { class: "plain" }, last.map((/** @type {any} */ step) => h("li", null, h("strong", null, `${step.name}: `), step.error))),
		],
		submit: { label: "Try again", busy: "Setting it on its way…" },
		call: () => ({ method: "POST", path }),
		async run() {
			const answer = await call("POST", path);
			setTimeout(() => toast("The undo is tried again"));
			return answer;
		},
	}).open();
}
