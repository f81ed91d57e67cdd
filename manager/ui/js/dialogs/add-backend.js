// Add backend: the kind's own fields, scan, a test beforehand; whatever the API refuses is shown where it belongs.

import { call } from "../api.js";
import { change } from "../change.js";
import { dialog } from "../dialog.js";
import { fill, h } from "../dom.js";
import { toast } from "../toast.js";
import { choiceField, labelsField, layout, schemaFields, switchField, textField, valuesOf } from "../form.js";
import { hostsFields, selectorOf } from "../hosts-field.js";
import { keep, kindOf, store } from "../store.js";
import { checkList } from "./checks.js";
import { scanner } from "./scan.js";

/** @returns {() => Promise<any>} what opens it; gives the backend, or undefined */
export function addBackend() {
	const kind = choiceField({
		pointer: "/kind",
		title: "Kind",
		value: store.kinds[0]?.kind,
		options: store.kinds.map((each) => ({ value: each.kind, title: each.title })),
		onChange: drawKind,
	});
	const name = textField({ pointer: "/name", title: "Name", hint: "Stands in addresses, events and logs", placeholder: "tank" });
	const isDefault = switchField({ pointer: "/is_default", title: "Set as default", hint: "New volumes that name no backend land here" });
	const labels = labelsField({ pointer: "/labels", isAdvanced: true });
	const hosts = hostsFields();
	const place = h("div", { class: "kind" }), tested = h("div", { role: "status" });
	/** @type {import("../form.js").Field[]} */
	let config = [];
	/** @type {import("../form.js").Field[]} */
	let credentials = [];
	const all = () => [kind, name, ...config, ...credentials, ...hosts, isDefault, labels];

	function drawKind() {
		const spec = kindOf(kind.value());
		const before = { ...valuesOf(config), ...valuesOf(credentials.filter((each) => !each.isSecret)) };
		config = schemaFields(spec.config_schema, "/config");
		credentials = schemaFields(spec.credentials_schema, "/credentials");
		for (const each of [...config, ...credentials]) {
			if (each.name in before && !each.isSecret && before[each.name] !== undefined && each.element.querySelector("input[type=text]")) {
				each.put(before[each.name]);
			}
		}
		fill(
			place,
			layout([...config.filter((each) => !each.isAdvanced), ...credentials, ...config.filter((each) => each.isAdvanced), hosts[1], labels]),
		);
		if (spec.discover_by) {
			config.find((each) => each.name === spec.discover_by)?.element.after(
				scanner(spec, () => ({ config: valuesOf(config), credentials: valuesOf(credentials) }), (found) => {
					for (const [key, value] of Object.entries(found)) config.find((each) => each.name === key)?.put(value);
					const filled = config.find((each) => each.name in found)?.element.querySelector("input, select");
					if (filled instanceof HTMLElement) filled.focus();
				}, box),
			);
		}
		fill(tested);
	}

	function body() {
		const given = valuesOf(credentials);
		return {
			name: name.value() ?? "",
			kind: kind.value(),
			config: valuesOf(config),
			...(Object.keys(given).length > 0 ? { credentials: given } : {}),
			is_default: isDefault.value(),
			hosts: selectorOf(hosts),
			labels: labels.value(),
		};
	}

	const test = h("button", {
		type: "button",
		onclick: () =>
			box.during(async () => {
				fill(tested);
				const { hosts: found } = await call("POST", "/v1/storage_backends/preflight", body());
				fill(tested, checkList(found));
			}, "Testing on every chosen host…"),
	}, "Test connection");

	const box = dialog({
		title: "Add backend",
		body: [kind.element, name.element, place, hosts[0].element, isDefault.element, tested],
		submit: { label: "Add backend", busy: "Every chosen host mounts and proves it…" },
		tools: [test],
		call: () => ({ method: "POST", path: "/v1/storage_backends", body: body() }),
		fields: all,
		restore(typed) {
			if ("/kind" in typed) {
				kind.put(typed["/kind"]);
				drawKind();
			}
			for (const each of all()) if (each.pointer in typed) each.put(typed[each.pointer]);
		},
		async run(watch) {
			const answer = await change("POST", "/v1/storage_backends", body(), { watch });
			const added = answer.name ? answer : await call("GET", `/v1/storage_backends/${answer.backend_id}`);
			keep(added);
			setTimeout(() =>
				toast("Storage backend added", {
					detail: added.state === "needs_initialization" ? `${added.name} is on a blank LUN: initialize it next` : added.name,
				})
			);
			return added;
		},
	});

	drawKind();
	return () => box.open();
}
