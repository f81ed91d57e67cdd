// Requests as text for a shell: what a dialog's button sends, to be sent from elsewhere.

import { Secret } from "./api.js";

/** The call as a line for a shell. The token comes from a file, and a body with secrets from another: the list of processes shows neither. @param {import("./api.js").Call} call */
export function asCurl({ method, path, body, headers = {} }) {
	const more = Object.entries({ ...headers, ...(body === undefined ? {} : { "Content-Type": "application/json" }) });
	const lines = more.map(([name, value]) => `-H ${quoted(`${name}: ${value}`)}`);
	const text = body === undefined ? "" : shown(body, (name) => `<${name}>`);
	if (hasSecret(body)) lines.push("--data @body.json  # which holds, with the secrets in their places:\n# " + text);
	else if (text) lines.push(`--data ${quoted(text)}`);
	return [`curl -sS -X ${method} ${quoted(location.origin + path)}`, '-H @"$STOWAGE_AUTH"', ...lines].join(" \\\n  ");
}

/** The call for the stowage command, which asks for secrets itself. @param {import("./api.js").Call} call */
export function asCli({ method, path, body, headers = {} }) {
	const data = body === undefined ? "" : ` --data ${quoted(shown(body, (name) => `<prompt:${name}>`))}`;
	const more = Object.entries(headers).map(([name, value]) => ` -H ${quoted(`${name}: ${value}`)}`).join("");
	return `stowage api --url ${quoted(location.origin)} ${method} ${quoted(path)}${more}${data}`;
}

/** @param {any} value @returns {boolean} */
function hasSecret(value) {
	return value instanceof Secret || (value !== null && typeof value === "object" && Object.values(value).some(hasSecret));
}

/** @param {any} body @param {(name: string) => string} hidden */
function shown(body, hidden) {
	/** @param {any} value @returns {any} */
	const walk = (value) => {
		if (value instanceof Secret) return hidden(value.name);
		if (Array.isArray(value)) return value.map(walk);
		if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, walk(each)]));
		return value;
	};
	return JSON.stringify(walk(body));
}

/** @param {string} text */
function quoted(text) {
	return `'${text.replaceAll("'", `'\\''`)}'`;
}
