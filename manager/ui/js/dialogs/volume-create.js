// A new volume: empty, or with the content of an image, a volume or a snapshot; and a clone, which begins at the volume to be copied.

import { all, part } from "../api.js";
import { dialog } from "../dialog.js";
import { h } from "../dom.js";
import { labelsField, textField } from "../form.js";
import { backendOf, store } from "../store.js";
import { backendChoices, checkSize, chooser, exact, placeFields, sizeField } from "./volume-fields.js";
import { begin } from "./volume-progress.js";

const SOURCES = [
	{ value: "", title: "Nothing: empty, all zeros" },
	{ value: "image", title: "An image" },
	{ value: "volume", title: "A volume" },
	{ value: "snapshot", title: "A snapshot" },
];

/** @param {any[]} volumes to copy from @param {string[]} [given] a source: its kind and its reference @returns {Promise<() => Promise<import("./volume-look.js").Done | undefined>>} what opens it */
export async function createVolume(volumes, given = []) {
	const [givenKind = "", ...givenRef] = given;
	const images = await all("/v1/images");
	/** What can be copied, by kind. @type {Record<string, {value: string, title: string, size?: number, backend?: string, why?: string}[]>} */
	const sources = {
		image: images.map((each) => copyOf(each)),
		volume: volumes.map((each) => copyOf(each)),
		snapshot: [],
	};
	const name = textField({ pointer: "/name", title: "Name", hint: "Stands in addresses, events and logs", placeholder: "web-data" });
	const kind = chooser({ pointer: "/source_kind", title: "Content", onChange: () => drawSource() });
	const of = chooser({ pointer: "/source_of", title: "Snapshot of", onChange: () => readSnapshots() });
	const source = chooser({ pointer: "/source", title: "Source", onChange: () => drawCopy() });
	const size = sizeField();
	const backend = chooser({ pointer: "/backend", title: "Backend", onChange: () => place.draw() });
	const place = placeFields(() => backendOf(backend.value() ?? ""));
	const labels = labelsField({ pointer: "/labels" });
	const fields = [name, kind, of, source, size, backend, place.host, place.format, labels];

	function drawSource() {
		const chosen = kind.value() ?? "";
		of.element.hidden = chosen !== "snapshot";
		source.element.hidden = chosen === "";
		source.offer(sources[chosen] ?? []);
		if (chosen === "snapshot") void readSnapshots();
		drawCopy();
	}

	async function readSnapshots() {
		const volume = of.value();
		if (!volume) return;
		try {
			const found = await all(`/v1/volumes/${part(volume)}/snapshots`);
			sources.snapshot = found.map((each) => copyOf(each, `${volume}/${each.name}`));
		} catch (problem) {
			sources.snapshot = [];
			box.notice(`The snapshots of ${volume} could not be read: ${/** @type {Error} */ (problem).message}`);
		}
		if (kind.value() === "snapshot" && of.value() === volume) {
			source.offer(sources.snapshot, givenRef.join("/"));
			drawCopy();
		}
	}

	/** A copy has its source's size unless more is asked for, and lies beside it unless told otherwise: there it can share blocks. */
	function drawCopy() {
		const from = sources[kind.value() ?? ""]?.find((each) => each.value === source.value());
		const control = size.element.querySelector("input");
		if (control) control.placeholder = from?.size ? exact(from.size) : "20 GiB";
		const hint = size.element.querySelector(".hint");
		if (hint) hint.textContent = from ? "Left blank, that of its source; never less" : "Such as 20 GiB, 512 MiB, or a number of bytes";
		if (!backend.isDirty()) backend.offer(backendChoices(), from?.backend ?? [...store.backends.values()].find((each) => each.is_default)?.name);
		place.draw();
	}

	function body() {
		const [from, ref] = [kind.value(), source.value()];
		return {
			name: name.value() ?? "",
			...(size.value() === undefined ? {} : { size_bytes: size.value() }),
			...(backend.value() ? { backend: backend.value() } : {}),
			...(place.host.value() ? { host: place.host.value() } : {}),
			...(place.format.value() ? { format: place.format.value() } : {}),
			...(from ? { source: { [from]: ref ?? "" } } : {}),
			labels: labels.value(),
		};
	}

	const box = dialog({
		title: "New volume",
		body: [
			name.element,
			kind.element,
			of.element,
			source.element,
			size.element,
			backend.element,
			place.host.element,
			place.format.element,
			labels.element,
		],
		submit: { label: "Create volume", busy: "Making it on the storage…" },
		call: () => ({ method: "POST", path: "/v1/volumes", body: body() }),
		fields: () => fields,
		async run() {
			checkSize(size);
			const made = body();
			const { operation } = await begin("POST", "/v1/volumes", made);
			return { operation, title: "Volume created", busy: "The volume is being made", failed: "The volume could not be made", detail: made.name };
		},
	});
	const withSnapshots = volumes.filter((each) => each.snapshots > 0);
	kind.offer(SOURCES.map(({ value, title }) => ({ value, title, why: nothingOf(value, images, volumes, withSnapshots) })), givenKind);
	of.offer(withSnapshots.map((each) => ({ value: each.name, title: each.name })), givenRef[0]);
	if (givenKind && givenKind !== "snapshot") source.offer(sources[givenKind] ?? [], givenRef[0]);
	const choices = backendChoices();
	if (choices.every((each) => each.why)) {
		box.refuse(choices.length > 0 ? "No backend takes new volumes now" : "There is no backend yet");
		box.notice(
			choices.length > 0 ? "No backend takes new volumes now." : ["There is no backend yet. ", h("a", { href: "#/storage/add" }, "Add one"), "."],
		);
	}
	drawSource();
	return () => box.open();
}

/** What a copy of it is chosen by. @param {any} each @param {string} [value] */
function copyOf({ name, size_bytes: size, backend, state }, value = name) {
	return { value, title: name, size: size ?? undefined, backend, why: state === "ready" ? undefined : state };
}

/** @param {string} kind @param {any[]} images @param {any[]} volumes @param {any[]} withSnapshots */
function nothingOf(kind, images, volumes, withSnapshots) {
	if (kind === "image" && images.length === 0) return "there is none";
	if (kind === "volume" && volumes.length === 0) return "there is none";
	return kind === "snapshot" && withSnapshots.length === 0 ? "there is none" : undefined;
}

/** @param {any} volume @returns {Promise<import("./volume-look.js").Done | undefined>} */
export function cloneVolume(volume) {
	const path = (/** @type {string} */ ref) => `/v1/volumes/${part(ref)}/clone`;
	const name = textField({ pointer: "/name", title: "Name of the clone", value: "", placeholder: `${volume.name}-copy` });
	const size = sizeField({ isOptional: true, hint: `Left blank, ${exact(volume.size_bytes)} as the source has; never less` });
	const backend = chooser({ pointer: "/backend", title: "Backend", onChange: () => place.draw() });
	const place = placeFields(() => backendOf(backend.value() ?? volume.backend_id), { sameFormat: `As the source: ${volume.format}` });
	const labels = labelsField({ pointer: "/labels", value: volume.labels });
	const fields = [name, size, backend, place.host, place.format, labels];
	const writer = volume.attachments.find((/** @type {any} */ each) => each.mode === "rw");
	const body = () => ({
		name: name.value() ?? "",
		...(size.value() === undefined ? {} : { size_bytes: size.value() }),
		...(backend.value() ? { backend: backend.value() } : {}),
		...(place.host.value() ? { host: place.host.value() } : {}),
		...(place.format.value() ? { format: place.format.value() } : {}),
		labels: labels.value(),
	});
	const box = dialog({
		title: `Clone ${volume.name}`,
		body: [
			writer && h(
				"p",
				{ class: "banner" },
				`${writer.host} may be writing to it now. The clone holds what has reached the storage, ` +
					"and only storage that shares blocks at once can make it.",
			),
			fields.map((each) => each.element),
		],
		submit: { label: "Clone", busy: "Making the clone…" },
		call: () => ({ method: "POST", path: path(volume.name), body: body() }),
		fields: () => fields,
		async run() {
			checkSize(size);
			const made = body();
			const { operation } = await begin("POST", path(volume.id), made);
			return { operation, title: "Volume cloned", busy: "The clone is being made", failed: "The clone could not be made", detail: made.name };
		},
	});
	backend.offer([{ value: "", title: `Where its source lies: ${volume.backend}` }, ...backendChoices({ without: volume.backend_id })]);
	place.draw();
	return box.open();
}
