// The results of a preflight, host by host.

import { h, icon } from "../dom.js";
import { milliseconds, words } from "../format.js";
import { badge, cellLook } from "../health.js";

/** @param {any[]} hosts */
export function checkList(hosts) {
	const bad = hosts.filter((each) => each.status !== "healthy").length;
	return h(
		"section",
		{ class: "checks", "aria-label": "Results of the test" },
		h(
			"h3",
			null,
			bad === 0
				? `It works on ${hosts.length === 1 ? "the one host" : `all ${hosts.length} hosts`}`
				: `It does not work on ${bad} of ${hosts.length} hosts`,
		),
		h(
			"ul",
			null,
			hosts.map((host) =>
				h(
					"li",
					null,
					h(
						"p",
						null,
						h("strong", null, host.host),
						" ",
						badge(cellLook(host)),
						host.latency_ms !== null && host.latency_ms !== undefined && ` ${milliseconds(host.latency_ms)}`,
					),
					host.checks.length > 0
						? h(
							"ul",
							null,
							host.checks.map((/** @type {any} */ check) =>
								h(
									"li",
									{ class: check.is_ok ? "good" : "bad" },
									icon(check.is_ok ? "healthy" : "unreachable"),
									h(
										"div",
										null,
										h("p", null, words(check.name), check.code && `: ${words(check.code)}`, check.detail && ` – ${check.detail}`),
										check.remedy && h("p", { class: "remedy" }, check.remedy),
									),
								)
							),
						)
						: host.detail && h("p", null, host.detail),
					host.checks.every((/** @type {any} */ check) => check.is_ok) && host.code &&
						h("p", null, `${words(host.code)}: ${host.detail ?? ""}`, host.remedy && h("span", { class: "remedy" }, ` ${host.remedy}`)),
				)
			),
		),
	);
}
