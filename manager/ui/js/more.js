// The sheet of all but the first look at Storage. Whoever imports this waits for it; without it everything works, if plainly.

import { h } from "./dom.js";

const sheet = h("link", { rel: "stylesheet", href: new URL("../more.css", import.meta.url).href });
await new Promise((resolve) => {
	sheet.onload = sheet.onerror = resolve;
	document.head.append(sheet);
});
