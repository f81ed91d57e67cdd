// Attach: says beforehand why a host would be refused, and afterwards the path for the hypervisor. Detach: by force only where nothing else is left.

import { call, part, Problem } from "../api.js";
import { copyBox } from "../copy.js";
import { dialog, facts } from "../dialog.js";
import { fill, h, icon, say } from "../dom.js";
import { choiceField, textField } from "../form.js";
import { backendOf, store, watch } from "../store.js";
import { chooser, hostChoices } from "./volume-fields.js";
import { begin } from "./volume-progress.js";

const MODES = [{ value: "rw", title: "Read and write: no other host may have it" }, { value: "ro", title: "Read only: any number of hosts" }];
/** Answers after which nobody but a person can say whether the host still writes. */
const SILENT = new Set(["no_agent", "agent_timeout", "probe_failed"]);

/** @param {any} volume @returns {Promise<import("./volume-look.js").Done | undefined>} */
export async function attachVolume(volume) {
	const path = `/v1/volumes/${part(volume.id)}`;
	const host = chooser({ pointer: "/host", title: "Host", onChange: ask });
	const mode = choiceField({ pointer: "/mode", title: "Mode", value: volume.attachments.length > 0 ? "ro" : "rw", options: MODES, onChange: ask });
	const found = h("div", { class: "explained", role: "status" });
	const fields = [host, mode];
	const body = () => ({ host: host.value() ?? "", mode: mode.value() });
	let asked = 0;

	/** Nothing is kept of an answer that came after the next question. */
	async function ask() {
		const mine = (asked += 1);
		if (!host.value()) {
			box.refuse("There is no host that can use its backend");
			fill(found, h("p", { class: "hint" }, "There is no online host that its backend is for."));
			return;
		}
		try {
			const { is_usable: isUsable, reasons } = await call("GET", `${path}/explain?host=${part(host.value())}&mode=${mode.value()}`);
			if (mine !== asked) return;
			box.refuse(isUsable ? "" : reasons.join("; "));
			fill(
				found,
				isUsable ? h("p", { class: "good" }, icon("healthy"), `It can be attached on ${host.value()}.`) : [
					h("p", { class: "bad" }, icon("warning"), `It cannot be attached on ${host.value()} now:`),
					h("ul", null, reasons.map((/** @type {string} */ each) => h("li", null, each))),
				],
			);
		} catch {
			if (mine !== asked) return;
			// Whatever is wrong, the attempt itself says it better.
			box.refuse("");
			fill(found);
		}
	}

	const box = dialog({
		title: `Attach ${volume.name}`,
		body: [
			host.element,
			mode.element,
			found,
			h("p", { class: "hint" }, "Give the hypervisor its read-only switch for what is attached read only: the path itself takes writes."),
		],
		submit: { label: "Attach", busy: "The host makes it ready…" },
		call: () => ({ method: "POST", path: `/v1/volumes/${part(volume.name)}/attach`, body: body() }),
		fields: () => fields,
		onClose: () => stop(),
		run: () => call("POST", `${path}/attach`, body(), {}),
	});
	const stop = watch((change) => {
		if (change.hosts || change.operations || change.everything) {
			offer();
			void ask();
		}
	});
	function offer() {
		const choices = hostChoices(backendOf(volume.backend_id), "").slice(1);
		const others = choices.find((each) => !each.why && !volume.attachments.some((/** @type {any} */ held) => held.host === each.value));
		host.offer(choices, host.value() ?? volume.host ?? others?.value);
	}
	offer();
	void ask();
	const given = await box.open();
	if (!given) return undefined;
	await showAttached(volume, { host: host.value(), mode: mode.value(), ...given });
	return { title: "Volume attached", failed: "", detail: `${volume.name} on ${host.value()}` };
}

/** What to give to the hypervisor. @param {any} volume @param {any} attachment */
function showAttached(volume, attachment) {
	return dialog({
		title: `${volume.name} is attached to ${attachment.host}`,
		body: [h("p", null, "Give this to the hypervisor on that host:"), attachmentFacts(attachment, volume.format)],
	}).open();
}

/** @param {any} attachment @param {string} format */
export function attachmentFacts(attachment, format) {
	return facts([
		["Path", attachment.path ? copyBox(`Path on ${attachment.host}`, attachment.path, "Copy path") : "not yet"],
		["Type", attachment.type === "block" ? "block device" : (attachment.type ?? "—")],
		["Format", `${format}: say so, never let it be guessed`],
		["Mode", attachment.mode === "rw" ? "read and write" : "read only"],
		["Epoch", String(attachment.epoch)],
	]);
}

/** @param {any} volume @param {string} [given] a host @returns {Promise<import("./volume-look.js").Done | undefined>} */
export function detachVolume(volume, given) {
	const names = volume.attachments.map((/** @type {any} */ each) => each.host);
	const host = choiceField({
		pointer: "/host",
		title: "Host",
		value: names.includes(given) ? given : names[0],
		onChange: draw,
		options: volume.attachments.map((/** @type {any} */ each) => ({ value: each.host, title: `${each.host} (${each.mode})` })),
	});
	const confirm = textField({ pointer: "/confirm", title: "Host" });
	const words = h("span");
	const danger = h(
		"fieldset",
		{ class: "rotate", hidden: true },
		h("legend", null, icon("warning"), "By force"),
		h("p", null, words),
		confirm.element,
	);
	let isSilent = false;
	const isForced = () => !danger.hidden;
	const body = () => (isForced() ? { host: host.value(), force: true } : { host: host.value() });

	function draw() {
		const found = [...store.hosts.values()].find((each) => each.name === host.value() && each.state !== "revoked");
		danger.hidden = !(isSilent || (found && found.state !== "online"));
		say(
			words,
			`${host.value()} does not say that it lets go, so it may still be writing. If it is running after all while another host writes, the volume's data is destroyed. ` +
				"Make sure that it is off, or cut off from the storage, before you go on.",
		);
		const label = confirm.element.querySelector("label");
		if (label) say(label, `Type ${host.value()} to say that it is off`);
		const submit = box.element.querySelector("button[type=submit]");
		if (submit) {
			say(submit, isForced() ? "Detach by force" : "Detach");
			submit.className = isForced() ? "danger" : "main";
		}
	}

	const box = dialog({
		title: `Detach ${volume.name}`,
		body: names.length === 0 ? h("p", null, "It is attached to no host.") : [
			h("p", null, "Stop the guest first: while a process on the host has the volume open, the host refuses."),
			host.element,
			danger,
		],
		submit: names.length === 0 ? undefined : { label: "Detach", busy: "The host lets go of it…" },
		call: names.length === 0 ? undefined : () => ({ method: "POST", path: `/v1/volumes/${part(volume.name)}/detach`, body: body() }),
		fields: () => [host, confirm],
		onClose: () => stop(),
		async run() {
			if (isForced() && confirm.value() !== host.value()) {
				throw new Problem({
					code: "invalid_field",
					title: "Not confirmed",
					detail: "one field is not valid",
					errors: [{ pointer: "/confirm", detail: `must be ${host.value()}, the host that is off` }],
				}, 0);
			}
			try {
				const { answer, operation } = await begin("POST", `/v1/volumes/${part(volume.id)}/detach`, body());
				const isConfirmed = answer?.is_confirmed ?? true;
				const title = isConfirmed ? "Volume detached" : "Volume detached without the host's word";
				return {
					operation,
					title,
					busy: "The host is letting go",
					failed: "It could not be detached",
					detail: `${volume.name} from ${host.value()}`,
				};
			} catch (problem) {
				if (problem instanceof Problem && SILENT.has(problem.code)) {
					isSilent = true;
					draw();
				}
				throw problem;
			}
		},
	});
	const stop = watch((change) => {
		if (change.hosts || change.everything) draw();
	});
	if (names.length > 0) draw();
	return box.open();
}
