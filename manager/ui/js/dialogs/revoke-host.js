// Revoke: says what ends and what stays, and wants the host's name typed.

import { all, call, part, Problem } from "../api.js";
import { dialog } from "../dialog.js";
import { h, icon } from "../dom.js";
import { toast } from "../toast.js";
import { textField } from "../form.js";
import { bytes, count } from "../format.js";
import { address } from "../router.js";

/** @param {any} host @returns {Promise<"revoked" | undefined>} */
export async function revokeHost(host) {
	const path = `/v1/hosts/${part(host.id)}`;
	/** @type {any[]} */
	const volumes = await all(`/v1/volumes?host=${part(host.id)}`);
	const isHere = (/** @type {any} */ volume) => volume.attachments.some((/** @type {any} */ each) => each.host_id === host.id);
	const attached = volumes.filter(isHere), lying = volumes.filter((volume) => volume.host === host.name);
	const confirm = textField({ pointer: "/confirm", title: `Type ${host.name} to confirm`, placeholder: host.name });
	const box = dialog({
		title: `Revoke ${host.name}?`,
		body: [
			attached.length > 0 &&
			h(
				"p",
				{ class: "banner bad" },
				icon("warning"),
				h(
					"span",
					null,
					`${count(attached.length, "volume is", "volumes are")} attached to ${host.name}. ` +
						`Other hosts may have ${
							attached.length === 1 ? "it" : "them"
						} the moment it is revoked, while a guest that still runs there goes on writing. Stop its guests first.`,
				),
			),
			h(
				"ul",
				{ class: "plain" },
				h("li", null, "Its connection ends at once and it is told nothing any more; its column in the matrix goes."),
				h("li", null, attached.length > 0 ? "Its attachments are closed, without its own word." : "Nothing is attached to it."),
				lying.length > 0 && h("li", null, `${count(lying.length, "volume lies", "volumes lie")} on its own disks and cannot be reached any more.`),
				h("li", null, "What it has mounted stays mounted there, until somebody unmounts it on the host."),
				h("li", null, "It can join again as a new host, with a new token, after its state folder was moved aside."),
			),
			attached.length > 0 &&
			h(
				"div",
				{ class: "scroll short", tabindex: "0", role: "region", "aria-label": "Attachments of this host" },
				h(
					"table",
					{ "aria-label": "Attachments of this host" },
					h("thead", null, h("tr", null, ["Volume", "Backend", "Mode", "Size"].map((title) => h("th", { scope: "col" }, title)))),
					h(
						"tbody",
						null,
						attached.map((volume) =>
							h(
								"tr",
								null,
								h("th", { scope: "row" }, h("a", { href: address(["volumes", volume.name]) }, volume.name)),
								h("td", null, volume.backend),
								h(
									"td",
									null,
									volume.attachments.find((/** @type {any} */ each) => each.host_id === host.id).mode === "ro" ? "read only" : "read and write",
								),
								h("td", null, bytes(volume.size_bytes)),
							)
						),
					),
				),
			),
			confirm.element,
		],
		submit: { label: "Revoke host", class: "danger", busy: "Telling the bus…" },
		call: () => ({ method: "DELETE", path }),
		fields: () => [confirm],
		async run() {
			if (confirm.value() !== host.name) {
				throw new Problem(
					{ code: "invalid_field", title: "Nothing was revoked.", errors: [{ pointer: "/confirm", detail: `must be ${host.name}` }] },
					0,
				);
			}
			await call("DELETE", path);
			setTimeout(() =>
				toast(`${host.name} was revoked`, {
					detail: attached.length > 0 ? `${count(attached.length, "attachment was", "attachments were")} closed.` : "",
				})
			);
			return "revoked";
		},
	});
	return box.open();
}
