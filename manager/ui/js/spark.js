// A line of what was, as small as a word.

import { SVG } from "./dom.js";

/** A line of the values between the least and the most of them, which are taken to lie `least` apart at least: so growth is seen, and noise
 * is not. @param {number[]} values @param {number} least @param {string} label */
export function sparkline(values, least, label) {
	const svg = document.createElementNS(SVG, "svg");
	const [width, height] = [96, 24];
	const low = Math.min(...values), span = Math.max(Math.max(...values) - low, least) || 1;
	const points = values.map((value, n) => {
		const x = values.length === 1 ? width : (n / (values.length - 1)) * width;
		return `${x.toFixed(1)},${(height - 4 - ((value - low) / span) * (height - 6)).toFixed(1)}`;
	});
	svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
	svg.setAttribute("preserveAspectRatio", "none");
	svg.setAttribute("class", "spark");
	svg.setAttribute("role", "img");
	svg.setAttribute("aria-label", label);
	for (const [shape, all] of [["polygon", [`0,${height}`, ...points, `${width},${height}`]], ["polyline", points]]) {
		const drawn = document.createElementNS(SVG, String(shape));
		drawn.setAttribute("points", /** @type {string[]} */ (all).join(" "));
		svg.append(drawn);
	}
	return svg;
}
