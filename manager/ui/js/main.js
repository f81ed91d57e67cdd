// The page begins: who is signed in sees the fleet, everybody else the door.

import { call, ended } from "./api.js";
import { fill, h } from "./dom.js";
import { shell } from "./shell.js";
import { forget, load, prepareLive, startLive, store } from "./store.js";

const root = /** @type {HTMLElement} */ (document.getElementById("app"));
/** @type {(() => void) | null} */
let leave = null;

/** @param {boolean} [isNew] whether somebody has just signed in */
async function begin(isNew = false) {
	try {
		const [session] = await Promise.all([call("GET", "/v1/session"), prepareLive()]);
		if (session.role === null) {
			return door(
				isNew
					? "The token is right, but the browser did not keep the session: another cookie of that name is in its way, or cookies are off. Clear this site's cookies."
					: undefined,
			);
		}
		store.session = session;
		await startLive(isNew);
		await load();
	} catch (error) {
		const problem = /** @type {import("./api.js").Problem} */ (error);
		if (problem.status === 401) return door();
		fill(
			root,
			h(
				"div",
				{ class: "empty", role: "alert" },
				h("h1", null, problem.title || "The page could not be loaded"),
				h("p", null, problem.message),
				h("button", { type: "button", class: "main", onclick: () => begin() }, "Try again"),
			),
		);
		return undefined;
	}
	leave = shell(root, () => over());
	return undefined;
}

/** @param {string} [why] */
async function door(why) {
	try {
		const { signIn } = await import("./sign-in.js");
		signIn(root, () => begin(true), why);
	} catch {
		// The file is no more after an upgrade, or the manager is away; either way a reload says which.
		fill(
			root,
			h(
				"div",
				{ class: "empty", role: "alert" },
				h("h1", null, "Sign in again"),
				h("button", { type: "button", class: "main", onclick: () => location.reload() }, "Reload"),
			),
		);
	}
}

/** @param {string} [why] */
function over(why) {
	// Dialogs first: what they keep is kept for who is signed in still.
	leave?.();
	leave = null;
	for (const dialog of document.querySelectorAll("dialog")) /** @type {any} */ (dialog).stowageClose?.();
	if (!why) dispatchEvent(new Event("signedout"));
	forget();
	void door(why);
}

ended.handler = () => {
	if (leave) over("The session is over. Sign in again; what you had typed is kept until you close the page, without passwords.");
};
// The address is the router's, so the link leads there without one.
document.querySelector(".skip")?.addEventListener("click", (event) => {
	event.preventDefault();
	document.getElementById("main")?.focus();
});
void begin();
