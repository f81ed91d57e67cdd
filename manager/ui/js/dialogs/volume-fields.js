// Fields that several dialogs about volumes have: a size in people's words, and where a volume is to lie.

import { Problem } from "../api.js";
import { fill, h, say, set } from "../dom.js";
import { field } from "../form.js";
import { bytes, words } from "../format.js";
import { parseBytes } from "../parse.js";
import { cellLook } from "../health.js";
import { kindOf, store } from "../store.js";
import { isShared } from "./volume-look.js";

const SECTOR_BYTES = 512;
/** Share of a backend's bytes above which the API lets nothing new come. */
const FULL = 0.98;

/** @typedef {{value: string, title: string, why?: string}} Choice  why: the reason for which it cannot be chosen */
/** @typedef {import("./../form.js").Field & {offer: (choices: Choice[], value?: string) => void}} Chooser */

/** A choice whose options come and go.
 * @param {{pointer: string, name?: string, title: string, hint?: string, isOptional?: boolean, onChange?: () => void}} options @returns {Chooser} */
export function chooser({ onChange, ...options }) {
	let isTouched = false, shown = "";
	const control = h("select", {
		onchange: () => {
			isTouched = true;
			onChange?.();
		},
	});
	const made = field({
		...options,
		control,
		read: () => control.value || undefined,
		write: (given) => {
			control.value = given ?? "";
		},
	});
	return {
		...made,
		// What stands in it at first depends on what there is to choose, which comes later.
		isDirty: () => isTouched,
		put(value) {
			isTouched = true;
			made.put(value);
			onChange?.();
		},
		reset() {
			isTouched = false;
		},
		offer(choices, value = control.value) {
			const look = JSON.stringify(choices);
			if (look === shown && value === control.value) return;
			shown = look;
			fill(
				control,
				choices.map((each) => h("option", { value: each.value, disabled: Boolean(each.why) }, each.why ? `${each.title} · ${each.why}` : each.title)),
			);
			const fit = choices.find((each) => each.value === value && !each.why) ?? choices.find((each) => !each.why);
			control.value = fit?.value ?? "";
		},
	};
}

/**
 * A size such as `20 GiB`; its value is whole sectors, or what was typed where that is no size.
 * @param {{title?: string, hint?: string, value?: number, isOptional?: boolean, onChange?: () => void}} [options]
 */
export function sizeField({ title = "Size", hint = "Such as 20 GiB, 512 MiB, or a number of bytes", value, isOptional, onChange } = {}) {
	const control = h("input", {
		type: "text",
		placeholder: "20 GiB",
		autocomplete: "off",
		spellcheck: "false",
		oninput: () => {
			draw();
			onChange?.();
		},
	});
	control.value = value === undefined ? "" : exact(value);
	const read = () => {
		const text = control.value.trim();
		const size = parseBytes(text);
		if (text === "") return undefined;
		return size === null || size > Number.MAX_SAFE_INTEGER ? text : Math.ceil(size / SECTOR_BYTES) * SECTOR_BYTES;
	};
	const made = field({
		pointer: "/size_bytes",
		title,
		hint,
		isOptional,
		control,
		read,
		write: (given) => {
			control.value = given === undefined ? "" : exact(given);
			draw();
		},
	});
	const meaning = h("p", { class: "hint" });
	made.element.append(meaning);
	function draw() {
		const size = read();
		say(
			meaning,
			typeof size !== "number"
				? ""
				: `${size.toLocaleString("en")} bytes${parseBytes(control.value) === size ? "" : `, rounded up to whole sectors of ${SECTOR_BYTES}`}`,
		);
	}
	draw();
	return made;
}

/** Raises Problem where a size was typed that is none, before the API is asked. @param {import("../form.js").Field} size */
export function checkSize(size) {
	if (typeof size.value() !== "string") return;
	throw new Problem({
		code: "invalid_field",
		title: "The size could not be read",
		detail: "one field is not valid",
		errors: [{ pointer: size.pointer, detail: "is no size: write it as 20 GiB, 512 MiB, or a number of bytes, below 8 PiB" }],
	}, 0);
}

/** The size as it can be typed, to the byte: 20 GiB, 1000448. @param {number} size */
export function exact(size) {
	const units = ["", " KiB", " MiB", " GiB", " TiB", " PiB"];
	let value = size, unit = 0;
	while (value >= 1024 && value % 1024 === 0 && unit < units.length - 1) {
		value /= 1024;
		unit += 1;
	}
	return `${value}${units[unit]}`;
}

/** Why nothing new comes to the backend; undefined when it may. @param {any} backend @returns {string | undefined} */
export function closedTo(backend) {
	if (backend.state !== "ready") return backend.state === "creating" ? "being added" : words(backend.state);
	const { capacity } = backend;
	return capacity?.total_bytes && capacity.used_bytes > FULL * capacity.total_bytes ? "full" : undefined;
}

/** Backends, the default first, with their room. @param {{without?: string}} [options] without: the id of one to leave out @returns {Choice[]} */
export function backendChoices({ without } = {}) {
	return [...store.backends.values()].filter((each) => each.id !== without)
		.sort((a, b) => Number(b.is_default) - Number(a.is_default) || a.name.localeCompare(b.name))
		.map((each) => ({
			value: each.name,
			why: closedTo(each),
			title: [
				each.is_default ? `${each.name} (default)` : each.name,
				each.capacity && `${bytes(each.capacity.available_bytes)} free`,
				each.health.status === "unreachable" && "unreachable",
			].filter(Boolean).join(" · "),
		}));
}

/** Hosts that the backend is for. @param {any} backend @param {string} first said for "none in particular" @returns {Choice[]} */
export function hostChoices(backend, first) {
	const cells = store.cells.get(backend?.id) ?? new Map();
	const hosts = [...store.hosts.values()].filter((host) => host.state !== "revoked" && cells.has(host.id));
	return [
		{ value: "", title: first },
		...hosts.map((host) => {
			const look = cellLook(cells.get(host.id));
			return {
				value: host.name,
				title: look.tone === "bad" ? `${host.name} · ${look.word.toLowerCase()}` : host.name,
				why: host.state === "online" ? undefined : host.state,
			};
		}),
	];
}

/**
 * Host and format, by the backend that is chosen.
 * @param {() => any} backend @param {{format?: string, sameFormat?: string}} [options] sameFormat: said for "as its source"
 */
export function placeFields(backend, { format: given, sameFormat } = {}) {
	const host = chooser({ pointer: "/host", title: "Host", isOptional: true });
	const format = chooser({ pointer: "/format", title: "Format" });
	const hint = h("p", { class: "hint" });
	host.element.append(hint);
	return {
		host,
		format,
		draw() {
			const chosen = backend();
			host.offer(hostChoices(chosen, "Chosen by Stowage"));
			say(
				hint,
				isShared(chosen) ? "Who does the work; every host can use the volume afterwards" : "Where it is to lie: no other host can use it there",
			);
			const formats = chosen ? kindOf(chosen.kind).formats : [];
			format.offer([
				...(sameFormat ? [{ value: "", title: sameFormat }] : []),
				...formats.map((/** @type {string} */ each) => ({ value: each, title: each })),
			], format.value() ?? given);
			set(format.element, "class", formats.length > 1 ? "field" : "field single");
		},
	};
}
