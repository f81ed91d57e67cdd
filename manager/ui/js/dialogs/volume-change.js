// Changes of one volume: name and labels, size, where it lies, and its end.

import { call, part } from "../api.js";
import { dialog, facts } from "../dialog.js";
import { h, icon } from "../dom.js";
import { labelsField, switchField, textField } from "../form.js";
import { bytes, moment } from "../format.js";
import { backendOf, store } from "../store.js";
import { backendChoices, checkSize, chooser, exact, hostChoices, sizeField } from "./volume-fields.js";
import { holders, refusesDelete } from "./volume-look.js";
import { begin } from "./volume-progress.js";

/** @typedef {import("./volume-look.js").Done} Done */

/** @param {any} volume */
const pathOf = (volume) => `/v1/volumes/${part(volume.id)}`;
/** Who changes a volume has seen this version of it. @param {any} volume */
const seen = (volume) => ({ "If-Match": `"${volume.version}"` });

/** Buttons for a version that is no more. @param {any} volume @param {(newest: any) => void} take @param {() => ReturnType<typeof dialog>} box */
function newer(volume, take, box) {
	return (
		/** @type {import("../api.js").Problem} */ problem,
	) => (problem.status === 412
		? [h("button", {
			type: "button",
			onclick: () =>
				box().during(async () => {
					take(await call("GET", pathOf(volume)));
					box().close();
				}, "Reading the newest version…"),
		}, "Load the newest version")]
		: []);
}

/** @param {any} volume @param {Record<string, any>} [typed] pointer → value, of what was changed before a reload @returns {Promise<Done | undefined>} */
export async function editVolume(volume, typed = {}) {
	const name = textField({ pointer: "/name", title: "Name", value: volume.name });
	const labels = labelsField({ pointer: "/labels", value: volume.labels });
	const fields = [name, labels];
	/** @type {any} */
	let newest = null;
	const body = () => ({ ...(name.isDirty() ? { name: name.value() ?? "" } : {}), ...(labels.isDirty() ? { labels: labels.value() } : {}) });
	const box = dialog({
		title: `Edit ${volume.name}`,
		body: [h("p", { class: "hint" }, `Version ${volume.version}`), fields.map((each) => each.element)],
		submit: { label: "Save changes", busy: "Saving…" },
		call: () => ({ method: "PATCH", path: `/v1/volumes/${part(volume.name)}`, body: body() }),
		fields: () => fields,
		isLeft: () => newest !== null,
		remedies: newer(volume, (found) => {
			newest = found;
		}, () => box),
		async run() {
			const change = body();
			if (Object.keys(change).length === 0) return { title: "Nothing was changed", failed: "" };
			const saved = await call("PATCH", pathOf(volume), change, { headers: seen(volume) });
			return { title: "Changes saved", failed: "", detail: saved.name };
		},
	});
	for (const each of fields) if (each.pointer in typed) each.put(typed[each.pointer]);
	const done = await box.open();
	// What was typed goes on top of the newest version.
	return newest ? editVolume(newest, Object.fromEntries(fields.filter((each) => each.isDirty()).map((each) => [each.pointer, each.value()]))) : done;
}

/** @param {any} volume @param {number} [typed] a size, before a reload @returns {Promise<Done | undefined>} */
export async function resizeVolume(volume, typed) {
	const size = sizeField({ title: "New size", value: volume.size_bytes, onChange: draw });
	const mayShrink = switchField({
		pointer: "/may_shrink",
		title: "Cut off what lies behind the new end",
		hint: "Shrink the guest's file system first: what lies behind the new end is lost for good",
	});
	const place = h(
		"div",
		{ class: "banner bad", hidden: true },
		icon("warning"),
		h("div", null, h("strong", null, "This makes the volume smaller."), mayShrink.element),
	);
	const fields = [size, mayShrink];
	/** @type {any} */
	let newest = null;
	function draw() {
		const wanted = size.value();
		place.hidden = !(typeof wanted === "number" && wanted < volume.size_bytes);
	}
	const body = () => ({ size_bytes: size.value(), ...(!place.hidden && mayShrink.value() ? { may_shrink: true } : {}) });
	const box = dialog({
		title: `Resize ${volume.name}`,
		body: [
			facts([["Present size", `${bytes(volume.size_bytes)} (${volume.size_bytes.toLocaleString("en")} bytes)`]]),
			size.element,
			place,
			h(
				"p",
				{ class: "hint" },
				volume.attachments.length > 0
					? `It is attached to ${
						holders(volume)
					}. A raw volume with one writer can grow meanwhile; tell the hypervisor then (QEMU: block_resize). Anything else wants it detached.`
					: "What is added reads as zeros.",
			),
		],
		submit: { label: "Resize", busy: "Resizing on the storage…" },
		call: () => ({ method: "POST", path: `/v1/volumes/${part(volume.name)}/resize`, body: body() }),
		fields: () => fields,
		isLeft: () => newest !== null,
		remedies: newer(volume, (found) => {
			newest = found;
		}, () => box),
		async run() {
			checkSize(size);
			const { answer, operation } = await begin("POST", `${pathOf(volume)}/resize`, body(), seen(volume));
			const now = answer ? `${volume.name} has ${exact(answer.size_bytes)} now` : volume.name;
			return { operation, title: "Volume resized", busy: "The volume is being resized", failed: "The volume could not be resized", detail: now };
		},
	});
	if (typed !== undefined) size.put(typed);
	draw();
	const done = await box.open();
	const wanted = size.value();
	return newest ? resizeVolume(newest, typeof wanted === "number" ? wanted : undefined) : done;
}

/** @param {any} volume @returns {Promise<Done | undefined>} */
export function migrateVolume(volume) {
	const backend = chooser({ pointer: "/backend", title: "To", onChange: draw });
	const host = chooser({
		pointer: "/host",
		title: "Host",
		isOptional: true,
		hint: "Who copies; on a backend that is not shared, where it is to lie",
	});
	const fields = [backend, host];
	const choices = backendChoices({ without: volume.backend_id });
	const room = h("p", { class: "banner fair", hidden: true });
	const body = () => ({ backend: backend.value() ?? "", ...(host.value() ? { host: host.value() } : {}) });

	function draw() {
		const target = backendOf(backend.value() ?? "");
		host.offer(hostChoices(target, "Chosen by Stowage"));
		const free = target?.capacity?.available_bytes;
		room.hidden = free === undefined || free >= volume.size_bytes;
		room.textContent = room.hidden ? "" : `${target.name} has ${bytes(free)} free, and the volume has ${bytes(volume.size_bytes)}.`;
	}

	const box = dialog({
		title: `Migrate ${volume.name}`,
		body: [
			h(
				"p",
				null,
				`Its bytes are copied from ${volume.backend}, read anew on both sides and compared; only then the volume changes over ` +
					"and the old ones are removed. What fails or is cancelled before leaves it as it was.",
			),
			fields.map((each) => each.element),
			room,
		],
		submit: { label: "Migrate", busy: "Beginning…" },
		call: () => ({ method: "POST", path: `/v1/volumes/${part(volume.name)}/migrate`, body: body() }),
		fields: () => fields,
		async run() {
			const { operation } = await begin("POST", `${pathOf(volume)}/migrate`, body(), seen(volume));
			return {
				operation,
				title: "Volume migrated",
				busy: "The volume is on its way",
				failed: "The volume stays where it was",
				detail: `${volume.name} to ${backend.value()}`,
			};
		},
	});
	backend.offer(choices);
	const held = volume.attachments.length > 0 ? `It is attached to ${holders(volume)}: detach it first` : "";
	const none = choices.every((each) => each.why) ? "No other backend takes volumes now" : "";
	box.refuse(held || none);
	if (held || none) box.notice(held || none);
	draw();
	return box.open();
}

/** @param {any} volume @returns {Promise<Done | undefined>} */
export function deleteVolume(volume) {
	const refusal = refusesDelete(volume);
	const box = dialog({
		title: `Delete ${volume.name}?`,
		body: [
			refusal && h("p", { class: "banner bad" }, icon("warning"), `${refusal}.`),
			h("p", null, whatGoes(volume)),
			facts([
				["Size", bytes(volume.size_bytes)],
				["Backend", volume.host ? `${volume.backend}, on ${volume.host}` : volume.backend],
				["Made", `${moment(volume.created_at)}${volume.source ? `, from ${volume.source}` : ""}`],
			]),
		],
		submit: { label: "Delete volume", class: "danger", busy: "Removing its bytes…" },
		call: () => ({ method: "DELETE", path: `/v1/volumes/${part(volume.name)}` }),
		async run() {
			const { operation } = await begin("DELETE", pathOf(volume), undefined, seen(volume));
			return {
				operation,
				title: "Volume deleted",
				busy: "The volume is being deleted",
				failed: "The volume could not be deleted yet",
				detail: volume.name,
			};
		},
	});
	if (refusal) box.refuse(refusal);
	return box.open();
}

/** What becomes of the bytes. @param {any} volume */
function whatGoes(volume) {
	const isLost = volume.host && ![...store.hosts.values()].some((host) => host.name === volume.host && host.state !== "revoked");
	if (isLost) return `Only the row goes: ${volume.host} was revoked, and the bytes stay where they are on it.`;
	/** @type {Record<string, string>} */
	const policies = {
		zero: "Its blocks are overwritten with zeros first, which takes a while, and then given back.",
		discard: "Its blocks are discarded on the storage and given back; whether they can still be read is the storage's affair.",
		none: "Its blocks are given back as they are: nothing overwrites what it held until others write there.",
	};
	const policy = backendOf(volume.backend_id)?.config.wipe_on_delete;
	return `The volume's bytes are removed for good. ${
		policies[policy] ?? "Nothing overwrites what it held; the space is given back to the file system."
	}`;
}
