// What people type, read.

/** The bytes of a text such as `20 GiB`, `20G` or `512`; null for what is none. @param {string} text @returns {number | null} */
export function parseBytes(text) {
	const found = /^\s*(\d+(?:\.\d+)?)\s*(?:([kmgtpe])(?:i?b)?|b)?\s*$/i.exec(text);
	if (!found) return null;
	const power = found[2] ? "kmgtpe".indexOf(found[2].toLowerCase()) + 1 : 0;
	return Math.round(Number(found[1]) * 1024 ** power);
}

/** `tier=gold, rack=4` → an object. A word without `=` becomes a key without a value. @param {string} text */
export function parseLabels(text) {
	/** @type {Record<string, string>} */
	const labels = {};
	for (const word of text.split(",").map((each) => each.trim()).filter(Boolean)) {
		const [key, ...rest] = word.split("=");
		labels[key.trim()] = rest.join("=").trim();
	}
	return labels;
}
