// How a volume stands, and what can be done with it or why not.

import { count, words } from "../format.js";
import { may, refOf, store } from "../store.js";

/** @typedef {{title: string, failed: string, busy?: string, detail?: string, operation?: string}} Done
 *  What a dialog gives that changed something. operation: it goes on; busy is said then, and title or failed at its end */

/** @type {Record<string, import("../health.js").Look>} */
const LOOKS = {
	creating: { word: "Being made", icon: "pending", tone: "none", rank: 0 },
	deleting: { word: "Being deleted", icon: "pending", tone: "none", rank: 1 },
	attaching: { word: "Attaching", icon: "pending", tone: "none", rank: 2 },
	detaching: { word: "Detaching", icon: "pending", tone: "none", rank: 3 },
	attached: { word: "Attached", icon: "healthy", tone: "good", rank: 4 },
	detached: { word: "Detached", icon: "blank", tone: "none", rank: 5 },
	unused: { word: "Unused", icon: "blank", tone: "fair", rank: 6 },
};

/** @param {any} volume */
function statusOf(volume) {
	if (volume.state !== "ready") return volume.state;
	const changing = volume.attachments.find((/** @type {any} */ each) => each.state !== "attached");
	if (changing) return changing.state;
	return volume.attachments.length > 0 ? "attached" : isUnused(volume) ? "unused" : "detached";
}

/** @param {any} volume @returns {import("../health.js").Look} */
export function volumeLook(volume) {
	return LOOKS[statusOf(volume)] ?? LOOKS.detached;
}

/** Neither attached nor with snapshots, as the API's own filter has it. @param {any} volume */
export function isUnused(volume) {
	return volume.attachments.length === 0 && volume.snapshots === 0;
}

/** hv1 (rw), hv2 (ro). @param {any} volume */
export function holders(volume) {
	return volume.attachments.map((/** @type {any} */ each) => `${each.host} (${each.mode})`).join(", ");
}

/** Whether all hosts see the same bytes on it: storage outside of the hosts. @param {any} backend */
export function isShared(backend) {
	return store.kinds.find((each) => each.kind === backend?.kind)?.is_shared ?? true;
}

/** Why nothing can be done to it now; undefined when something can. @param {any} volume @returns {string | undefined} */
function busy(volume) {
	if (volume.state === "creating") return "it is being made";
	if (volume.state === "deleting") return "it is being deleted";
	return volume.operation ? "an operation is under way on it" : undefined;
}

/** Why the API would not delete it, in its words; empty when it would. @param {any} volume */
export function refusesDelete(volume) {
	const hosts = volume.attachments.map((/** @type {any} */ each) => each.host).join(", ");
	const why = [hosts && `it is attached to ${hosts}`, volume.snapshots > 0 && `it has ${count(volume.snapshots, "snapshot")}`].filter(Boolean);
	return why.length > 0 ? `${volume.name} cannot be deleted: ${why.join(" and ")}` : "";
}

/** What a reader may do with it. @param {any} volume @param {(...path: string[]) => void} go @returns {import("../table.js").Action[]} */
export function volumeActions(volume, go) {
	if (!may("operator")) return [];
	const { name, attachments } = volume;
	const isBusy = busy(volume), held = attachments.length > 0 ? `it is attached to ${holders(volume)}: detach it first` : undefined;
	/** @param {string} id @param {string} text @param {string} [why] @param {string} [says] */
	const action = (id, text, why, says = `${text} ${name}`) => ({ id, text, label: says, why, run: () => go(refOf(volume), id) });
	return [
		action(
			"attach",
			"Attach",
			isBusy ?? (attachments.some((/** @type {any} */ each) => each.mode === "rw") ? `it is attached to ${holders(volume)}` : undefined),
		),
		action("detach", "Detach", attachments.length === 0 ? "it is attached to no host" : isBusy),
		action("snapshot", "Take snapshot", isBusy, `Take a snapshot of ${name}`),
		action("snapshots", "Snapshots", undefined, `Snapshots of ${name}`),
		action("edit", "Edit", isBusy),
		action("resize", "Resize", isBusy),
		action("clone", "Clone", volume.state === "ready" ? undefined : isBusy),
		action("migrate", "Migrate", isBusy ?? held),
		// One whose deletion broke off is deleted by asking again.
		{
			...action("delete", "Delete", volume.state === "deleting" && !volume.operation ? undefined : (isBusy ?? (refusesDelete(volume) || undefined))),
			class: "danger",
		},
	];
}

/** What is under way, in a word. @param {any} operation */
export function operationWords(operation) {
	if (operation.state === "stuck") return "Stuck: a person must look";
	if (operation.state === "undoing") return "Undoing";
	if (operation.is_cancelled) return "Turning back";
	return DOING[operation.kind] ?? words(operation.kind.replace(".", " "));
}

/** @type {Record<string, string>} */
const DOING = {
	"volume.create": "Being made",
	"volume.delete": "Being deleted",
	"volume.resize": "Resizing",
	"volume.attach": "Attaching",
	"volume.detach": "Detaching",
	"volume.migrate": "Moving",
	"volume.revert": "Going back to a snapshot",
};
