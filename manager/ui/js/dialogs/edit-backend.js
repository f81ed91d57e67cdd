// Edit: what is fixed is text; passwords have a box of their own, where blank keeps; a version that is no more offers the newest.

import { call, part } from "../api.js";
import { change } from "../change.js";
import { dialog } from "../dialog.js";
import { h, icon } from "../dom.js";
import { toast } from "../toast.js";
import { labelsField, layout, schemaFields, switchField, textField, valuesOf } from "../form.js";
import { hostsFields, selectorOf } from "../hosts-field.js";
import { keep, kindOf, store, watch } from "../store.js";

/** @param {any} backend @param {Record<string, any>} [typed] pointer → value, of fields that were changed before a reload
 * @returns {() => Promise<any>} what opens it; gives the backend, or undefined */
export function editBackend(backend, typed = {}) {
	const spec = kindOf(backend.kind);
	const name = textField({ pointer: "/name", title: "Name", value: backend.name });
	const config = schemaFields(spec.config_schema, "/config", { values: backend.config, isEdit: true });
	const credentials = schemaFields(spec.credentials_schema, "/credentials", {
		blank: backend.has_credentials ? "Leave blank to keep the current one" : "Leave blank for none",
	});
	const hosts = hostsFields(backend.hosts);
	const labels = labelsField({ pointer: "/labels", value: backend.labels, isAdvanced: true });
	const isDefault = switchField({
		pointer: "/is_default",
		title: "Set as default",
		value: backend.is_default,
		hint: backend.is_default ? "It is the default; to change that, set another backend as default" : "The present default is cleared by it",
	});
	if (backend.is_default) isDefault.element.querySelector("input")?.setAttribute("disabled", "");
	const isDraining = switchField({
		pointer: "/state",
		title: "Drain",
		value: backend.state === "draining",
		isAdvanced: true,
		hint: "No new volume comes here; those that are here stay and work",
	});
	const canDrain = backend.state === "ready" || backend.state === "draining";
	const all = [name, ...config, ...hosts, isDefault, labels, ...(canDrain ? [isDraining] : []), ...credentials];
	/** @type {any} */
	let reloaded = null;

	function body() {
		/** @type {Record<string, any>} */
		const change = {};
		if (name.isDirty()) change.name = name.value() ?? "";
		const changed = config.filter((each) => each.isDirty());
		if (changed.length > 0) change.config = Object.fromEntries(changed.map((each) => [each.name, each.value() ?? ""]));
		const given = valuesOf(credentials);
		if (Object.keys(given).length > 0) change.credentials = given;
		if (hosts.some((each) => each.isDirty())) change.hosts = selectorOf(hosts);
		if (labels.isDirty()) change.labels = labels.value();
		if (isDefault.isDirty() && isDefault.value()) change.is_default = true;
		if (canDrain && isDraining.isDirty()) change.state = isDraining.value() ? "draining" : "ready";
		return change;
	}

	async function reload() {
		reloaded = await call("GET", `/v1/storage_backends/${part(backend.id)}`);
		keep(reloaded);
		box.close();
	}

	const box = dialog({
		title: `Edit ${backend.name}`,
		body: [
			h("p", { class: "hint" }, `${spec.title} · version ${backend.version}`),
			name.element,
			layout([...config, hosts[1], labels, ...(canDrain ? [isDraining] : [])]),
			hosts[0].element,
			isDefault.element,
			credentials.length > 0 &&
			h(
				"fieldset",
				{ class: "rotate" },
				h("legend", null, icon("key"), backend.has_credentials ? "Rotate password" : "Set a password"),
				h(
					"p",
					{ class: "hint" },
					"A new one is proven beside the old one on every host, and only then taken over. Running guests keep their mounts.",
				),
				credentials.map((each) => each.element),
				h("p", { class: "hint" }, "Kept by the hosts alone; no database and no bus ever sees it."),
			),
		],
		submit: { label: "Save changes", busy: "Proving the change on every host…" },
		call: () => ({
			method: "PATCH",
			path: `/v1/storage_backends/${part(backend.id)}`,
			headers: { "If-Match": `"${backend.version}"` },
			body: body(),
		}),
		fields: () => all,
		isLeft: () => reloaded !== null,
		remedies: (
			problem,
		) => (problem.status === 412
			? [h("button", { type: "button", onclick: () => box.during(reload, "Reading the newest version…") }, "Load the newest version")]
			: []),
		onClose: () => stop(),
		async run(watch) {
			const edited = body();
			if (Object.keys(edited).length === 0) {
				toast("Nothing was changed");
				return backend;
			}
			const answer = await change("PATCH", `/v1/storage_backends/${part(backend.id)}`, edited, {
				headers: { "If-Match": `"${backend.version}"` },
				watch,
			});
			const saved = answer?.version ? answer : await call("GET", `/v1/storage_backends/${part(backend.id)}`);
			keep(saved);
			setTimeout(() => toast(edited.credentials ? "Password rotated" : "Changes saved", { detail: saved.name }));
			return saved;
		},
	});
	let told = backend.version;
	const stop = watch(() => {
		const now = store.backends.get(backend.id);
		if (now && now.version > told && !box.element.querySelector("[aria-busy]") && box.element.open) {
			told = now.version;
			box.notice(
				`Somebody changed it meanwhile; it is at version ${now.version}. `,
				h("button", { type: "button", onclick: () => box.during(reload, "Reading the newest version…") }, "Load the newest version"),
			);
		}
	});
	for (const each of all) if (each.pointer in typed) each.put(typed[each.pointer]);
	return async () => {
		const done = await box.open();
		if (!reloaded) return done;
		// What was typed goes on top of the newest version; secrets have to be typed again.
		const changed = Object.fromEntries(all.filter((each) => each.isDirty() && !each.isSecret).map((each) => [each.pointer, each.value()]));
		return editBackend(reloaded, changed)();
	};
}
