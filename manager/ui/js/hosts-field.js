// Which hosts a backend is for: every one, some by name, or those that bear labels.

import { h } from "./dom.js";
import { field, labelsField } from "./form.js";
import { liveHosts } from "./store.js";

let numbers = 0;

/** The fields of a host selector. @param {{names: string[], labels: Record<string, string>}} [selector] @returns {import("./form.js").Field[]} */
export function hostsFields(selector = { names: ["*"], labels: {} }) {
	const name = `hosts-${(numbers += 1)}`;
	const isAll = selector.names.includes("*");
	const every = h("input", { type: "radio", name, id: `${name}-all`, onchange: turn });
	const some = h("input", { type: "radio", name, id: `${name}-some`, onchange: turn });
	every.checked = isAll;
	some.checked = !isAll;
	const known = [...new Set([...liveHosts().map((host) => host.name), ...selector.names.filter((each) => each !== "*")])];
	const boxes = known.map((host) => {
		const box = h("input", { type: "checkbox", id: `${name}-${host}`, value: host });
		box.checked = !isAll && selector.names.includes(host);
		return box;
	});
	const list = h(
		"div",
		{ class: "boxes", hidden: isAll },
		boxes.map((box) => h("div", null, box, h("label", { for: box.id }, box.value))),
		boxes.length === 0 && h("p", { class: "hint" }, "No host has joined yet."),
	);
	const control = h(
		"fieldset",
		{ class: "hosts" },
		h("legend", { class: "unseen" }, "Hosts"),
		h(
			"div",
			{ class: "boxes" },
			h("div", null, every, h("label", { for: every.id }, "Every host, those to come too")),
			h("div", null, some, h("label", { for: some.id }, "Only these")),
		),
		list,
	);

	function turn() {
		list.hidden = every.checked;
	}

	const names = field({
		pointer: "/hosts/names",
		title: "Hosts",
		control,
		read: () => (every.checked ? ["*"] : boxes.filter((box) => box.checked).map((box) => box.value)),
		write: (given) => {
			every.checked = given.includes("*");
			some.checked = !every.checked;
			for (const box of boxes) box.checked = given.includes(box.value);
			turn();
		},
	});
	// A group is named by its legend, not by a label.
	const label = names.element.querySelector("label");
	if (label) label.replaceWith(h("span", { class: "label" }, "Hosts"));
	return [
		names,
		labelsField({
			pointer: "/hosts/labels",
			title: "Only hosts with labels",
			hint: "Hosts that do not bear all of these are left out, such as zone=a",
			value: selector.labels,
			isAdvanced: true,
		}),
	];
}

/** The selector that the fields say. @param {import("./form.js").Field[]} fields */
export function selectorOf(fields) {
	return { names: fields[0].value(), labels: fields[1].value() };
}
