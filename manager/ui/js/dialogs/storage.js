// Which dialog an address of the page Storage means: `add`, `NAME`, `NAME/edit`, `NAME/HOST`.

import { opener } from "../opener.js";
import { backendOf, liveHosts, may, readSchemas } from "../store.js";

/** What the dialog of a backend is made by; each fetches what it shows and gives what opens it. */
const DIALOGS = {
	edit: async (/** @type {any} */ backend) => (await import("./edit-backend.js")).editBackend(backend),
	remove: async (/** @type {any} */ backend) => (await import("./remove-backend.js")).removeBackend(backend),
	initialize: async (/** @type {any} */ backend) => (await import("./initialize-backend.js")).initializeBackend(backend),
};

/** @param {() => void} onRemoved the row that opened the dialog is gone then */
export function storageDialogs(onRemoved) {
	return opener("storage", async ([name, what]) => {
		const isChange = (name === "add" && !what) || Object.hasOwn(DIALOGS, what ?? "");
		if (isChange && !may("operator")) throw new Error("This takes the role operator.");
		await readSchemas();
		if (name === "add" && !what) return (await import("./add-backend.js")).addBackend();
		const backend = backendOf(name);
		if (!backend) throw new Error(`There is no backend ${name}.`);
		if (!what) return (await import("./backend.js")).showBackend(backend);
		if (!isChange) return (await import("./cell.js")).showCell(backend, liveHosts().find((host) => host.name === what || host.id === what));
		const show = await DIALOGS[/** @type {keyof typeof DIALOGS} */ (what)](backend);
		return async () => {
			if ((await show()) === "removed") onRemoved();
		};
	});
}
