// Whether the chain of the log is unbroken: asked for by a button, for all of the log is read then.

import { call } from "../api.js";
import { fill, h, icon, set } from "../dom.js";
import { count, moment } from "../format.js";
import { badge } from "../health.js";

/** What stands beside the heading, and a banner for bad news. `grown` is called when the log has more. */
export function chain() {
	const state = h("span", { role: "status" });
	const button = h("button", { type: "button", onclick: verify }, icon("healthy"), "Verify the chain");
	const banner = h("div", { class: "banner bad", role: "alert", hidden: true });
	let added = 0;
	/** @type {any} */
	let report = null;

	async function verify() {
		if (button.getAttribute("aria-disabled") === "true") return;
		// Not disabled, which would take the focus away.
		set(button, "aria-disabled", "true");
		set(button, "aria-busy", "true");
		banner.hidden = true;
		fill(state, h("span", { class: "hint" }, "Reading the whole log…"));
		try {
			report = await call("GET", "/v1/events/verification");
			added = 0;
			draw();
		} catch (problem) {
			report = null;
			fill(state, badge({ word: "Not verified", icon: "unknown", tone: "none", rank: 0 }));
			bad("The chain could not be verified", /** @type {Error} */ (problem).message);
		}
		set(button, "aria-disabled", null);
		set(button, "aria-busy", null);
	}

	/** @param {string} title @param {string} words */
	function bad(title, words) {
		banner.hidden = false;
		fill(banner, icon("warning"), h("p", null, h("strong", null, title), `. ${words}`));
	}

	function draw() {
		if (report.first_broken !== null) {
			fill(state, badge({ word: `Broken at event ${report.first_broken}`, icon: "unreachable", tone: "bad", rank: 0 }, moment(report.verified_at)));
			bad(
				`The chain is broken at event ${report.first_broken}`,
				"That event was altered, or taken out, after it was sealed; " +
					`${
						report.events === 0
							? "none stands before it"
							: `the ${count(report.events, "event")} before it ${report.events === 1 ? "is" : "are"} unbroken`
					}. ` +
					"What the log says from there on cannot be trusted: compare it with what your consumers of the event stream have kept.",
			);
		} else if (report.is_complete) {
			fill(
				state,
				badge(
					{ word: `${count(report.events, "event")}, unbroken`, icon: "healthy", tone: "good", rank: 0 },
					`Verified ${moment(report.verified_at)}`,
				),
				added > 0 && h("span", { class: "hint" }, ` and ${added} new since`),
			);
		} else {
			fill(
				state,
				badge(
					{ word: `${count(report.events, "event")} so far unbroken`, icon: "warning", tone: "fair", rank: 0 },
					"The log is longer than what could be read in the time that a request has",
				),
			);
		}
	}

	return {
		element: h("div", { class: "actions" }, state, button),
		banner,
		grown() {
			added += 1;
			if (report) draw();
		},
	};
}
