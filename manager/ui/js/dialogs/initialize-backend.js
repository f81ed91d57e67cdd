// Initialize: what is on the device, and the backend's name typed by whoever answers for it.

import { call, part } from "../api.js";
import { change } from "../change.js";
import { dialog, facts } from "../dialog.js";
import { h, icon } from "../dom.js";
import { toast } from "../toast.js";
import { confirmField, switchField } from "../form.js";
import { bytes } from "../format.js";
import { keep, kindOf } from "../store.js";

/** @param {any} backend @returns {Promise<() => Promise<any>>} what opens it */
export async function initializeBackend(backend) {
	const path = `/v1/storage_backends/${part(backend.id)}`;
	const found = await call("GET", `${path}/inspection`);
	const properties = kindOf(backend.kind).config_schema.properties;
	const confirm = confirmField("/confirm", backend.name);
	const force = switchField({ pointer: "/force", title: "Erase what is there", hint: "Without this, data that is not ours is refused" });
	const fields = found.is_blank ? [confirm] : [confirm, force];
	const body = () => ({ confirm: confirm.value() ?? "", wwid: found.wwid, force: !found.is_blank && force.value() });
	const box = dialog({
		title: `Initialize ${backend.name}`,
		body: [
			h(
				"p",
				{ class: found.is_blank ? "banner" : "banner bad" },
				icon("warning"),
				h(
					"span",
					null,
					found.is_blank
						? "The device looks blank. Initializing writes our structures on it; whatever it holds is lost."
						: "There is data on this device. Initializing it with force destroys that data for good.",
				),
			),
			facts([
				["Seen by", found.host],
				["Device", h("code", null, found.wwid)],
				["Size", bytes(found.size_bytes)],
				["Signatures", found.signatures?.length ? found.signatures.join(", ") : "none"],
				["Partition table", found.partition_table ?? "none"],
				["Volume group", found.foreign_vg ? `${found.foreign_vg}, which is not ours` : "none"],
				["In use by a host", found.is_used === null ? "not known" : found.is_used ? "yes" : "no"],
				...Object.entries(backend.config).filter(([, value]) => typeof value === "string" && value).map((
					[key, value],
				) => /** @type {[string, any]} */ ([properties[key]?.title ?? key, h("code", null, String(value))])),
			]),
			fields.map((each) => each.element),
		],
		submit: { label: found.is_blank ? "Initialize" : "Erase and initialize", class: "danger", busy: "Writing on the device…" },
		call: () => ({ method: "POST", path: `/v1/storage_backends/${part(backend.name)}/initialize`, body: body() }),
		fields: () => fields,
		async run(watch) {
			const answer = await change("POST", `${path}/initialize`, body(), { watch });
			const ready = answer?.version ? answer : await call("GET", path);
			keep(ready);
			setTimeout(() => toast(`${backend.name} is ready`, { detail: "The volume group was created." }));
			return ready;
		},
	});
	return () => box.open();
}
