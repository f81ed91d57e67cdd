// Fields from JSON Schema: a new kind of storage needs no line of JavaScript.

import { Secret } from "./api.js";
import { h, icon, set } from "./dom.js";
import { labelText } from "./format.js";
import { parseLabels } from "./parse.js";

/**
 * @typedef {{pointer: string, name: string, element: HTMLElement, isAdvanced: boolean, value: () => any, put: (value: any) => void,
 *   reset: () => void, isDirty: () => boolean, show: (error: string) => void, isSecret?: boolean}} Field
 * value: undefined where nothing was given. reset: as it was at first. show: an empty error takes it away. isSecret: never kept in a draft
 */

let numbers = 0;

/**
 * One labelled control with its hint and its error.
 * @param {{pointer: string, name?: string, title: string, hint?: string, isOptional?: boolean, isAdvanced?: boolean, control: any,
 *   read: () => any, write: (value: any) => void, isSecret?: boolean, isSwitch?: boolean, after?: HTMLElement}} options
 * @returns {Field}
 */
export function field(
	{ pointer, name = pointer.split("/").at(-1) ?? "", title, hint, isOptional, isAdvanced = false, control, read, write, isSecret, isSwitch, after },
) {
	const id = `field-${(numbers += 1)}`;
	const error = h("p", { class: "error", id: `${id}-error`, hidden: true }, icon("warning"), h("span"));
	set(control, "id", id);
	set(control, "name", name);
	const described = [hint && `${id}-hint`, `${id}-error`].filter(Boolean).join(" ");
	set(control, "aria-describedby", described);
	const label = h("label", { for: id }, title, isOptional && h("span", { class: "optional" }, " optional"));
	const said = hint && h("p", { class: "hint", id: `${id}-hint` }, hint);
	const element = isSwitch
		? h("div", { class: "field switch" }, h("div", null, control, label), said, error)
		: h("div", { class: "field" }, label, after ? h("div", { class: "with" }, control, after) : control, said, error);
	const initial = read();
	const first = JSON.stringify(initial);
	return {
		pointer,
		name,
		element,
		isAdvanced,
		value: read,
		put: write,
		reset: () => write(initial),
		isSecret,
		isDirty: () => JSON.stringify(read()) !== first,
		show(words) {
			error.hidden = !words;
			/** @type {Element} */ (error.lastElementChild).textContent = words;
			set(control, "aria-invalid", words ? "true" : null);
		},
	};
}

/** A line of text. @param {{pointer: string, title: string, hint?: string, value?: string, placeholder?: string, isOptional?: boolean, isAdvanced?: boolean, isSecret?: boolean, after?: HTMLElement}} options */
export function textField({ value = "", placeholder, ...options }) {
	const control = h("input", { type: "text", placeholder, autocomplete: "off", spellcheck: "false", autocapitalize: "off" });
	control.value = value;
	return field({
		...options,
		control,
		read: () => control.value.trim() || undefined,
		write: (given) => {
			control.value = given ?? "";
		},
	});
}

/** A name to be typed by who answers for what follows: typed anew each time. @param {string} pointer @param {string} name */
export function confirmField(pointer, name) {
	return textField({ pointer, title: `Type ${name} to confirm`, placeholder: name, isSecret: true });
}

/** A switch. @param {{pointer: string, title: string, hint?: string, value?: boolean, isAdvanced?: boolean}} options */
export function switchField({ value = false, ...options }) {
	const control = h("input", { type: "checkbox" });
	control.checked = value;
	return field({
		...options,
		isSwitch: true,
		control,
		read: () => control.checked,
		write: (given) => {
			control.checked = Boolean(given);
		},
	});
}

/** A choice. @param {{pointer: string, title: string, hint?: string, value?: string, options: {value: string, title: string}[], isOptional?: boolean, isAdvanced?: boolean, onChange?: (value: string) => void, after?: HTMLElement}} options */
export function choiceField({ value, options, onChange, ...others }) {
	const control = h("select", { onchange: () => onChange?.(control.value) }, options.map((each) => h("option", { value: each.value }, each.title)));
	if (value !== undefined) control.value = value;
	return field({
		...others,
		control,
		read: () => control.value || undefined,
		write: (given) => {
			control.value = given ?? "";
		},
	});
}

/** Labels, as `tier=gold, rack=4`. @param {{pointer: string, title?: string, hint?: string, value?: Record<string, string>, isAdvanced?: boolean}} options */
export function labelsField({ value = {}, title = "Labels", hint = "Such as tier=gold, rack=4", ...options }) {
	const control = h("input", { type: "text", placeholder: "tier=gold", autocomplete: "off", spellcheck: "false" });
	control.value = labelText(value);
	return field({
		...options,
		title,
		hint,
		isOptional: true,
		control,
		read: () => parseLabels(control.value),
		write: (given) => {
			control.value = labelText(given ?? {});
		},
	});
}

/**
 * A field for each property of the schema, in its order.
 * @param {any} schema JSON Schema 2020-12 of an object with flat properties, with x-ui hints
 * @param {string} at the pointer of that object in the body
 * @param {{values?: Record<string, any>, isEdit?: boolean, blank?: string}} [options] isEdit: fixed fields are shown as text. blank: said in
 *   empty fields, all of which are optional then
 * @returns {Field[]}
 */
export function schemaFields(schema, at, { values = {}, isEdit = false, blank } = {}) {
	return Object.entries(schema?.properties ?? {}).map(([name, given]) => {
		const property = unwrapped(given);
		const ui = property["x-ui"] ?? {};
		const value = values[name] ?? property.default;
		const shared = {
			pointer: `${at}/${name}`,
			title: property.title ?? name,
			hint: [property.description, isEdit && ui.change === "remount" && "A change is mounted anew, host by host."].filter(Boolean).join(". ")
				.replaceAll("..", "."),
			isAdvanced: Boolean(ui.advanced),
			isOptional: blank !== undefined || !(schema.required ?? []).includes(name),
		};
		if (isEdit && ui.change === "fixed") return fixed(shared, value);
		if (property.enum) {
			const choices = property.enum.map((/** @type {any} */ each) => ({ value: String(each), title: String(each) }));
			return choiceField({
				...shared,
				value: value === undefined ? undefined : String(value),
				options: shared.isOptional && property.default === undefined ? [{ value: "", title: "—" }, ...choices] : choices,
			});
		}
		if (property.type === "boolean") return switchField({ ...shared, value: Boolean(value) });
		if (property.writeOnly) return secret({ ...shared, blank });
		if (property.type === "integer" || property.type === "number") return number({ ...shared, value });
		return textField({ ...shared, value: value ?? "", placeholder: blank ?? (ui.placeholder || undefined) });
	});
}

/** `anyOf [X, null]` is X, with the title beside it. @param {any} property */
function unwrapped(property) {
	const inner = property.anyOf?.find((/** @type {any} */ each) => each.type !== "null");
	return inner ? { ...inner, ...property } : property;
}

/** @param {any} shared @param {any} value @returns {Field} */
function fixed({ pointer, title, hint, isAdvanced }, value) {
	const element = h(
		"div",
		{ class: "field" },
		h("span", { class: "label" }, title),
		h("p", { class: "fixed" }, value === undefined || value === "" ? "—" : String(value)),
		h("p", { class: "hint" }, `${hint ? `${hint}. ` : ""}Cannot be changed.`),
	);
	return {
		pointer,
		name: pointer.split("/").at(-1),
		element,
		isAdvanced,
		value: () => undefined,
		put: () => {},
		reset: () => {},
		isDirty: () => false,
		show: () => {},
	};
}

/** @param {any} options @returns {Field} */
function secret({ blank, ...options }) {
	// The browser must neither offer its own passwords here nor keep ours.
	const control = h("input", { type: "password", autocomplete: "new-password", placeholder: blank, spellcheck: "false" });
	const name = options.pointer.split("/").at(-1);
	return field({
		...options,
		isSecret: true,
		control,
		read: () => (control.value ? new Secret(name, control.value) : undefined),
		write: () => {
			control.value = "";
		},
	});
}

/** A whole number; what is none goes to the API as it is, which says so. @param {any} options @returns {Field} */
function number({ value, ...options }) {
	const control = h("input", { type: "text", inputmode: "numeric", autocomplete: "off" });
	control.value = value === undefined || value === null ? "" : String(value);
	const read = () => {
		const text = control.value.trim();
		return text === "" ? undefined : /^-?\d{1,15}$/.test(text) ? Number(text) : text;
	};
	return field({
		...options,
		control,
		read,
		write: (given) => {
			control.value = given === undefined ? "" : String(given);
		},
	});
}

/** The fields' elements, the advanced ones folded away. @param {Field[]} fields @returns {HTMLElement[]} */
export function layout(fields) {
	const basic = fields.filter((each) => !each.isAdvanced), advanced = fields.filter((each) => each.isAdvanced);
	const folded = advanced.length > 0
		? [h("details", null, h("summary", null, `Show advanced (${advanced.length})`), advanced.map((each) => each.element))]
		: [];
	return [...basic.map((each) => each.element), ...folded];
}

/** Their values by name, without those that were not given. @param {Field[]} fields @returns {Record<string, any>} */
export function valuesOf(fields) {
	return Object.fromEntries(fields.map((each) => [each.name, each.value()]).filter(([, value]) => value !== undefined));
}

/** Each error at its field, whose fold is opened; gives back those without a field. @param {Field[]} fields @param {import("./api.js").FieldError[]} errors */
export function showErrors(fields, errors) {
	const rest = [];
	/** @type {Map<Field, string[]>} */
	const said = new Map();
	for (const error of errors) {
		const at = fields.find((each) => error.pointer === each.pointer) ?? fields.find((each) => error.pointer.startsWith(`${each.pointer}/`));
		if (at) said.set(at, [...(said.get(at) ?? []), error.detail]);
		else rest.push(error);
	}
	for (const each of fields) {
		const words = (said.get(each) ?? []).join("; ");
		each.show(words);
		if (words) each.element.closest("details")?.setAttribute("open", "");
	}
	return rest;
}
