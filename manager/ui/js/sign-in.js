// The door: a token for a cookie that no script can read.

import "./more.js";
import { call } from "./api.js";
import { fill, h, set } from "./dom.js";

/** @param {HTMLElement} root @param {() => Promise<unknown>} onSignedIn @param {string} [why] */
export function signIn(root, onSignedIn, why) {
	document.title = "Sign in · Stowage";
	const input = h("input", {
		id: "token",
		type: "password",
		name: "token",
		autocomplete: "current-password",
		required: true,
		spellcheck: "false",
		"aria-describedby": "token-hint token-error",
	});
	const error = h("p", { id: "token-error", class: "error", role: "alert" });
	const submit = h("button", { type: "submit", class: "main" }, "Sign in");
	const form = h(
		"form",
		{ class: "door", novalidate: true, onsubmit: enter },
		h("div", { class: "brand" }, h("img", { src: new URL("../icon.svg", import.meta.url).href, alt: "", width: 22, height: 22 }), "Stowage"),
		h("h1", null, "Sign in"),
		why && h("p", { class: "banner" }, why),
		h(
			"div",
			{ class: "field" },
			h("label", { for: "token" }, "Access token"),
			input,
			h(
				"p",
				{ class: "hint", id: "token-hint" },
				"Begins with stw_. The first one is in the file that `stowage up` names; an admin can make others.",
			),
			error,
		),
		submit,
	);
	fill(root, h("main", { id: "main", class: "doorway", tabindex: "-1" }, form));
	input.focus();

	/** @param {Event} event */
	async function enter(event) {
		event.preventDefault();
		const token = input.value.trim();
		error.textContent = "";
		set(input, "aria-invalid", null);
		if (!token) return refuse("Paste a token");
		submit.disabled = true;
		try {
			await call("POST", "/v1/session", { token });
			input.value = "";
			await onSignedIn();
		} catch (problem) {
			submit.disabled = false;
			const { status, message } = /** @type {import("./api.js").Problem} */ (problem);
			refuse(status === 401 ? "This token is not valid: unknown, revoked or expired" : message);
		}
		return undefined;
	}

	/** @param {string} words */
	function refuse(words) {
		error.textContent = words;
		set(input, "aria-invalid", "true");
		input.focus();
		input.select();
	}
}
