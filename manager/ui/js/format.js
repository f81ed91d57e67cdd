// Numbers, sizes and times as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/** Three digits and a unit: 5.60 TiB. @param {number} size */
export function bytes(size) {
	let value = size, unit = 0;
	while (value >= 1024 && unit < UNITS.length - 1) {
		value /= 1024;
		unit += 1;
	}
	// What would be rounded to 1024 is one of the next.
	if (Math.round(value) >= 1024 && unit < UNITS.length - 1) {
		value = 1;
		unit += 1;
	}
	const digits = unit === 0 ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
	return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** @param {number} ms */
export function milliseconds(ms) {
	return ms < 1 ? "<1 ms" : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
/** @type {[Intl.RelativeTimeFormatUnit, number][]} */
const STEPS = [["day", 86_400], ["hour", 3_600], ["minute", 60], ["second", 1]];

/** How long ago: `5 min. ago`. @param {string | null | undefined} time */
export function ago(time) {
	if (!time) return "never";
	const seconds = Math.round((new Date(time).getTime() - Date.now()) / 1000);
	if (Math.abs(seconds) < 2) return "now";
	const [unit, size] = STEPS.find(([, size]) => Math.abs(seconds) >= size) ?? ["second", 1];
	return RELATIVE.format(Math.round(seconds / size), unit);
}

/** The moment itself, in the reader's zone. @param {string | null | undefined} time */
export function moment(time) {
	return time ? new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }) : "—";
}

/** @param {number} count @param {string} noun @param {string} [plural] */
export function count(count, noun, plural = `${noun}s`) {
	return `${count} ${count === 1 ? noun : plural}`;
}

/** `clone_from_image` → `clone from image`. @param {string} name */
export function words(name) {
	return name.replaceAll("_", " ");
}

/** @param {string} text */
export function capital(text) {
	return text.charAt(0).toUpperCase() + text.slice(1);
}

/** {tier: "gold"} → `tier=gold`. @param {Record<string, string>} labels */
export function labelText(labels) {
	return Object.entries(labels).map(([key, value]) => `${key}=${value}`).join(", ");
}
