// The page's one way to make and change elements: no HTML strings, so nothing that a server says can become markup.

/** @typedef {Node | string | number | null | undefined | boolean | Nested} Child  null, undefined, true and false are nothing */
/** @typedef {Child[]} Nested */
/** @typedef {Record<string, any>} Attributes  `on…` adds a listener, `class` and `dataset` are as named, true/false set or leave out */

/**
 * An element with its attributes and children.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Attributes | null} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, attributes, ...children) {
	const made = document.createElement(tag);
	for (const [name, value] of Object.entries(attributes ?? {})) {
		if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
		else if (name === "dataset") Object.assign(made.dataset, value);
		else set(made, name, value);
	}
	made.append(...nodes(children));
	return made;
}

/** @param {Child[]} children @returns {(Node | string)[]} */
function nodes(children) {
	return children.flatMap((child) => {
		if (Array.isArray(child)) return nodes(child);
		if (child === null || child === undefined || typeof child === "boolean") return [];
		return [child instanceof Node ? child : String(child)];
	});
}

/** The attribute has the value; nothing is touched where it has it already. @param {Element} element @param {string} name @param {any} value */
export function set(element, name, value) {
	if (value === false || value === null || value === undefined) {
		if (element.hasAttribute(name)) element.removeAttribute(name);
		return;
	}
	const text = value === true ? "" : String(value);
	if (element.getAttribute(name) !== text) element.setAttribute(name, text);
}

/** The element's text; nothing is touched where it is that already. @param {Element} element @param {string} text */
export function say(element, text) {
	if (element.textContent !== text) element.textContent = text;
}

/** The element's children are these. @param {Element} element @param {...Child} children */
export function fill(element, ...children) {
	element.replaceChildren(...nodes(children));
}

/**
 * The parent's children are one element an item, in the items' order: present ones are changed in place, so that
 * focus, scrolling and an open menu outlive a live update.
 * @template I
 * @param {Element} parent
 * @param {Iterable<I>} items
 * @param {(item: I) => string} key
 * @param {(item: I) => Element} make
 * @param {(element: Element, item: I) => void} update
 */
export function keyed(parent, items, key, make, update) {
	/** @type {Map<string, Element>} */
	const present = new Map();
	for (const child of parent.children) present.set(/** @type {any} */ (child).stowageKey, child);
	const focused = document.activeElement;
	/** @type {Element | null} */
	let next = parent.firstElementChild;
	for (const item of items) {
		const name = key(item);
		let element = present.get(name);
		if (element === undefined) {
			element = make(item);
			/** @type {any} */ (element).stowageKey = name;
		} else {
			present.delete(name);
		}
		update(element, item);
		if (element === next) next = next.nextElementSibling;
		else parent.insertBefore(element, next);
	}
	for (const element of present.values()) element.remove();
	// Moving an element takes its focus away.
	if (focused !== document.activeElement && focused instanceof HTMLElement && focused.isConnected) {
		focused.focus({ preventScroll: true });
	}
}

/** As many rows as a screen of 1080 lines shows. */
const IN_VIEW = 16;

/**
 * The work is done with what is in view at once, and with the rest in turns between which the browser paints and listens.
 * @template I
 * @param {I[]} items
 * @param {(some: I[]) => void} work
 * @param {() => boolean} isWanted whether the rest is still wanted
 * @param {number} [size] of the first turn; each is twice as large as the one before, for painting costs too
 */
export function inTurns(items, work, isWanted, size = IN_VIEW) {
	work(items.slice(0, size));
	const rest = items.slice(size);
	if (rest.length > 0) {
		// In the second frame: by then what there is has been painted.
		requestAnimationFrame(() =>
			requestAnimationFrame(() => {
				if (isWanted()) inTurns(rest, work, isWanted, size * 2);
			})
		);
	}
}

export const SVG = "http://www.w3.org/2000/svg";
/** Strokes on a field of 24 × 24. */
const ICONS = {
	storage: "M4 14 6.5 5h11L20 14v5H4zM4 14h16M16 16.5h1",
	volumes: "m12 3 9 5-9 5-9-5zm-9 9 9 5 9-5M3 16l9 5 9-5",
	hosts: "M4 4h16v6H4zM4 14h16v6H4zM8 7h0M8 17h0",
	activity: "M4 6h16M4 12h16M4 18h10",
	operations: "M12 3a9 9 0 1 0 9 9M12 7v5l3 2",
	healthy: "m5 12 5 5 9-10",
	warning: "M12 4 2.5 20h19zM12 10v4M12 17h0",
	unreachable: "m6 6 12 12M18 6 6 18",
	unknown: "M9 9a3 3 0 1 1 4 2.8c-.8.4-1 1-1 2.2M12 18h0",
	pending: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16zM12 8v4l2 2",
	blank: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16z",
	refresh: "M20 11a8 8 0 1 0-2 6M20 5v6h-6",
	add: "M12 5v14M5 12h14",
	edit: "m4 20 1-4L16 5l3 3L8 19zM14 7l3 3",
	remove: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
	star: "m12 4 2.4 5 5.6.8-4 3.9.9 5.5-4.9-2.6-4.9 2.6.9-5.5-4-3.9 5.6-.8z",
	theme: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5",
	key: "M15 9a4 4 0 1 0-3.5 4L4 20.500M7 17l2 2",
	close: "m6 6 12 12M18 6 6 18",
	undo: "M9 5 4 10l5 5M4 10h10a6 6 0 0 1 0 12h-3",
	copy: "M9 9h11v11H9zM5 15H4V4h11v1",
	initialize: "M14 6a4 4 0 0 1 5 5l-9 9-4-4 9-9zM6 16l-2 4 4-2",
	more: "M5 12h0M12 12h0M19 12h0",
	scan: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l5 5",
};

/** @param {keyof typeof ICONS} name @returns {SVGElement} */
export function icon(name) {
	const svg = document.createElementNS(SVG, "svg");
	const path = document.createElementNS(SVG, "path");
	for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) {
		svg.setAttribute(key, value);
	}
	path.setAttribute("d", ICONS[name]);
	svg.append(path);
	return svg;
}

/** @typedef {keyof typeof ICONS} IconName */

/** Said by a screen reader, and shown to nobody. @param {string} words */
export function announce(words) {
	const place = document.getElementById("said");
	if (place) place.textContent = words;
}
