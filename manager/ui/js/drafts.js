// What was typed into dialogs that were left, without secrets and without what was typed to confirm. It is whose who typed it.

import { store } from "./store.js";

/** By the dialog's title. @type {Map<string, {who: string, typed: Record<string, any>}>} */
const drafts = new Map();

/** @param {string} title @param {Record<string, any>} typed */
export function keepDraft(title, typed) {
	if (store.session) drafts.set(title, { who: store.session.name, typed });
}

/** What the reader himself typed there; undefined for nothing. @param {string} title */
export function draftOf(title) {
	const draft = drafts.get(title);
	return draft && draft.who === store.session?.name ? draft.typed : undefined;
}

/** @param {string} title */
export function dropDraft(title) {
	drafts.delete(title);
}

// Who signs out leaves nothing to the next one.
addEventListener("signedout", () => drafts.clear());
