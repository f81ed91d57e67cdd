// Remove: says what goes and what stays; what the API would refuse, it refuses here in the API's words.

import { all, call, part } from "../api.js";
import { change } from "../change.js";
import { dialog } from "../dialog.js";
import { h, icon } from "../dom.js";
import { toast } from "../toast.js";
import { bytes, count, words } from "../format.js";
import { drop } from "../store.js";

/** @param {any} backend @returns {Promise<() => Promise<any>>} what opens it */
export async function removeBackend(backend) {
	const path = `/v1/storage_backends/${part(backend.id)}`;
	const [plan, volumes] = await Promise.all([call("DELETE", `${path}?dry_run=true`), all(`/v1/volumes?backend=${part(backend.id)}`)]);
	const box = dialog({
		title: `Remove ${backend.name}?`,
		body: [
			plan.refusal && h("p", { class: "banner bad" }, icon("warning"), plan.refusal),
			h("p", null, `The backend is forgotten. ${sentence(plan.left)}`),
			plan.hosts.length > 0 && h("p", { class: "hint" }, plan.hosts.map((/** @type {any} */ each) => `${each.host}: ${each.action}`).join("; ")),
			volumes.length > 0 &&
			h(
				"div",
				{ class: "scroll short", tabindex: "0", role: "region", "aria-label": "Volumes on this backend" },
				h(
					"table",
					{ "aria-label": "Volumes on this backend" },
					h("caption", null, `${count(volumes.length, "volume")} on this backend`),
					h("thead", null, h("tr", null, ["Volume", "Attached to", "Size", "State"].map((title) => h("th", { scope: "col" }, title)))),
					h(
						"tbody",
						null,
						volumes.map((volume) =>
							h(
								"tr",
								null,
								h("th", { scope: "row" }, h("a", { href: `#/volumes/${part(volume.name)}` }, volume.name)),
								h("td", null, volume.attachments.map((/** @type {any} */ each) => each.host).join(", ") || "—"),
								h("td", null, bytes(volume.size_bytes)),
								h("td", null, words(volume.state)),
							)
						),
					),
				),
			),
		],
		submit: { label: "Remove backend", class: "danger", busy: "Every host lets go of it…" },
		call: () => ({ method: "DELETE", path: `/v1/storage_backends/${part(backend.name)}` }),
		async run(watch) {
			await change("DELETE", path, undefined, { watch });
			drop(backend.id);
			setTimeout(() => toast("Storage backend removed", { detail: backend.name }));
			return "removed";
		},
	});
	if (!plan.is_allowed) box.refuse(plan.refusal);
	return () => box.open();
}

/** @param {string} words */
function sentence(words) {
	return `${words.charAt(0).toUpperCase()}${words.slice(1)}.`;
}
