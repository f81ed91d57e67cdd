// What a server offers, as a chosen host sees it, to fill the fields with.

import { call, part } from "../api.js";
import { fill, h, icon } from "../dom.js";
import { liveHosts } from "../store.js";

/**
 * A row with the host to look from and the button; what is found becomes buttons that hand their config to `take`.
 * @param {any} spec the kind
 * @param {() => {config: any, credentials: any}} typed
 * @param {(config: Record<string, any>) => void} take
 * @param {{during: (work: () => Promise<void>, said: string) => Promise<void>}} box
 */
export function scanner(spec, typed, take, box) {
	const online = liveHosts().filter((host) => host.state === "online");
	const from = h("select", { "aria-label": "Host to scan from" }, online.map((host) => h("option", { value: host.name }, `from ${host.name}`)));
	const found = h("div", { class: "found", role: "status" });
	const title = spec.config_schema.properties[spec.discover_by]?.title ?? spec.discover_by;
	const scan = h(
		"button",
		{
			type: "button",
			disabled: online.length === 0,
			title: online.length === 0 ? "No host is online" : null,
			onclick: () =>
				box.during(async () => {
					fill(found);
					const { config, credentials } = typed();
					const body = { kind: spec.kind, config, ...(Object.keys(credentials).length > 0 ? { credentials } : {}) };
					const { items } = await call("POST", `/v1/hosts/${part(from.value)}/discover`, body);
					fill(
						found,
						items.length === 0
							? h("p", { class: "hint" }, `Nothing is offered to ${from.value}.`)
							: items.map((/** @type {any} */ item) =>
								h("button", {
									type: "button",
									class: "chip",
									onclick: () => {
										take(item.config);
										fill(found, h("p", { class: "hint" }, `${item.title} was taken over.`));
									},
								}, item.title)
							),
					);
					const first = found.querySelector("button");
					if (first) first.focus();
				}, `Asking the server, as ${from.value} sees it…`),
		},
		icon("scan"),
		`Scan the ${title.toLowerCase()}`,
	);
	return h("div", { class: "scan" }, h("div", { class: "with" }, from, scan), found);
}
