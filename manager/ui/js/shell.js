// The frame around every view: navigation, the sign of life, theme, sign out; and the view that the address asks for.

import { call } from "./api.js";
import { announce, fill, h, icon, say, set } from "./dom.js";
import { toast } from "./toast.js";
import { address, here } from "./router.js";
import { store, watch } from "./store.js";

/** @typedef {{title: string, element: HTMLElement, update: (change: import("./store.js").Change) => void, turn: () => void, end?: () => void}} View
 *  update: the store has changed. turn: the address has, within the view */

/** @type {{name: string, title: string, icon: import("./dom.js").IconName, load: () => Promise<any>}[]} */
const PAGES = [
	{ name: "storage", title: "Storage", icon: "storage", load: () => import("./views/storage.js") },
	{ name: "volumes", title: "Volumes", icon: "volumes", load: () => import("./views/volumes.js") },
	{ name: "hosts", title: "Hosts", icon: "hosts", load: () => import("./views/hosts.js") },
	{ name: "activity", title: "Activity", icon: "activity", load: () => import("./views/activity.js") },
	{ name: "operations", title: "Operations", icon: "operations", load: () => import("./views/operations.js") },
];

const STATES = {
	live: ["Live", "Changes are shown as they happen"],
	connecting: ["Reconnecting…", "Changes do not arrive; what is shown may be old"],
	closed: ["Offline", "Changes do not arrive; what is shown may be old"],
};
/** A stream that is opened needs a moment, and one that broke off mostly comes back in it. */
const MOMENT_MS = 3_000;

/** The frame, in the place of whatever was there; call what it returns to end it. @param {HTMLElement} root @param {() => void} onSignedOut */
export function shell(root, onSignedOut) {
	const links = PAGES.map((page) => h("a", { href: address([page.name]) }, icon(page.icon), h("span", null, page.title)));
	const state = h("span", { class: "state" }, h("span", { class: "dot", "aria-hidden": "true" }), h("span", null));
	const stale = h("p", { class: "banner fair", hidden: true, role: "status" });
	const main = h("main", { id: "main", tabindex: "-1" }, h("p", { class: "loading", role: "status" }, "Loading…"));
	const theme = h("button", { type: "button", class: "quiet", onclick: turnTheme });
	const who = h("span", { class: "who" });
	fill(
		root,
		h(
			"div",
			{ class: "frame" },
			h(
				"nav",
				{ class: "side", "aria-label": "Main" },
				h(
					"a",
					{ class: "brand", href: address(["storage"]) },
					h("img", { src: new URL("../icon.svg", import.meta.url).href, alt: "", width: 22, height: 22 }),
					"Stowage",
				),
				h("p", { class: "group", "aria-hidden": "true" }, "Host"),
				links.slice(0, 3),
				h("p", { class: "group", "aria-hidden": "true" }, "Log"),
				links.slice(3),
			),
			h(
				"div",
				{ class: "page" },
				h(
					"header",
					{ class: "top" },
					state,
					h("span", { class: "space" }),
					who,
					theme,
					h("button", { type: "button", class: "quiet", onclick: signOut }, "Sign out"),
				),
				stale,
				main,
			),
		),
	);

	/** @type {View | null} */
	let view = null;
	let shownPage = "";
	let turns = 0;

	async function turn() {
		const place = here();
		const page = PAGES.find((each) => each.name === place.page) ?? PAGES[0];
		links.forEach((link, n) => set(link, "aria-current", PAGES[n] === page ? "page" : null));
		if (page.name === shownPage) {
			view?.turn();
			return;
		}
		const mine = (turns += 1);
		const isFirst = shownPage === "";
		shownPage = page.name;
		// A dialog belongs to the view that opened it; one of its own links may have led here.
		/** @type {any} */ (document.querySelector("dialog[open]"))?.stowageClose?.();
		view?.end?.();
		view = null;
		/** @type {any} */
		let module;
		try {
			module = await page.load();
		} catch {
			if (mine !== turns) return;
			shownPage = "?";
			fill(
				main,
				h(
					"div",
					{ class: "empty" },
					h("h1", null, "This part of the page could not be loaded"),
					h("p", null, "The manager does not answer, or serves a newer page by now."),
					h("button", { type: "button", class: "main", onclick: () => location.reload() }, "Reload"),
				),
			);
			return;
		}
		if (mine !== turns) return;
		view = /** @type {View} */ (module.view());
		document.title = `${page.title} · Stowage`;
		fill(main, view.element);
		view.update({ everything: true });
		view.turn();
		if (!isFirst) {
			main.focus();
			announce(page.title);
		}
	}

	/** @type {any} */
	let waiting = 0;
	function drawState() {
		const [word, title] = STATES[store.state];
		say(state.children[1], word);
		set(state, "class", `state ${store.state}`);
		set(state, "title", title);
		if (store.state === "live") {
			clearTimeout(waiting);
			waiting = 0;
			set(stale, "hidden", true);
			say(stale, "");
		} else {waiting ||= setTimeout(() => {
				set(stale, "hidden", false);
				say(stale, `${title}. Trying again by itself.`);
			}, MOMENT_MS);}
		say(who, store.session ? `${store.session.name} · ${store.session.role}` : "");
	}

	const themes = ["auto", "light", "dark"];
	function turnTheme() {
		const next = themes[(themes.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % 3];
		document.documentElement.dataset.theme = next;
		localStorage.setItem("theme", next);
		drawTheme();
		announce(`Theme: ${next}`);
	}
	function drawTheme() {
		const now = document.documentElement.dataset.theme ?? "auto";
		fill(theme, icon("theme"));
		set(theme, "aria-label", `Theme: ${now}`);
		set(theme, "title", `Theme: ${now}; turn to the next`);
	}

	async function signOut() {
		try {
			await call("DELETE", "/v1/session");
		} catch (error) {
			toast("Could not sign out", { detail: String(/** @type {any} */ (error).message), isBad: true });
			return;
		}
		onSignedOut();
	}

	let isEnded = false;
	const stop = watch((change) => {
		if (change.state || change.everything) drawState();
		view?.update(change);
	});
	addEventListener("hashchange", turn);
	drawState();
	drawTheme();
	void turn();
	return () => {
		if (isEnded) return;
		isEnded = true;
		clearTimeout(waiting);
		stop();
		removeEventListener("hashchange", turn);
		view?.end?.();
	};
}
