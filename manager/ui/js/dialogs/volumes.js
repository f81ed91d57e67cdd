// Which dialog an address of the page Volumes means: `add`, `NAME`, `NAME/resize`, `NAME/snapshots/SNAPSHOT/revert`.

import { call, part } from "../api.js";
import { may } from "../store.js";
import { attachVolume, detachVolume } from "./volume-attach.js";
import { deleteVolume, editVolume, migrateVolume, resizeVolume } from "./volume-change.js";
import { cloneVolume, createVolume } from "./volume-create.js";
import { deleteSnapshot, revertVolume, showSnapshots, takeSnapshot } from "./volume-snapshots.js";
import { showVolume } from "./volume.js";

/** @typedef {import("./volume-look.js").Done} Done */

/** By the word behind the name. @type {Record<string, (volume: any, more: string[], notice: string) => Promise<Done | undefined>>} */
const DIALOGS = {
	"": (volume) => showVolume(volume),
	attach: (volume) => attachVolume(volume),
	detach: (volume, [host]) => detachVolume(volume, host),
	edit: (volume) => editVolume(volume),
	resize: (volume) => resizeVolume(volume),
	migrate: (volume) => migrateVolume(volume),
	delete: (volume) => deleteVolume(volume),
	clone: (volume) => cloneVolume(volume),
	snapshot: (volume) => takeSnapshot(volume),
	snapshots: (volume, [snapshot, what], notice) =>
		what === "revert" ? revertVolume(volume, snapshot) : what === "delete" ? deleteSnapshot(volume, snapshot) : showSnapshots(volume, notice),
};
/** What changes nothing that a viewer must not see. */
const FOR_VIEWERS = new Set(["", "snapshots"]);

/** What opens the dialog; it gives what has been done in it. Raises Error with words for none, Problem.
 * @param {string[]} path @param {() => Promise<any[]>} volumes from which a new one may be copied @param {string} notice said in a list
 * @returns {Promise<() => Promise<Done | undefined>>} */
export async function volumeDialog([ref, what = "", ...more], volumes, notice) {
	if (!may("operator") && (ref === "add" || !FOR_VIEWERS.has(what) || more.length > 0)) throw new Error("This takes the role operator.");
	if (ref === "add") return createVolume(await volumes(), what ? [what, ...more] : []);
	const volume = await call("GET", `/v1/volumes/${part(ref)}`);
	return () => DIALOGS[Object.hasOwn(DIALOGS, what) ? what : ""](volume, more, notice);
}
