// Hosts: who has joined the fleet, whether each answers, and how many backends each finds healthy.

import "../more.js";
import { fill, h, icon, set } from "../dom.js";
import { ago, count, moment } from "../format.js";
import { badge } from "../health.js";
import { healthyBackends, hostLook, hostOf, newestVersion } from "../hosts.js";
import { keepingFilters, opener } from "../opener.js";

import { here, put, replace } from "../router.js";
import { focusOnSlash, whileVisible } from "../habits.js";
import { kindOf, may, store } from "../store.js";
import { hostAddress, hostRef } from "../subjects.js";
import { buttons, table } from "../table.js";

/** How often words such as `5 min. ago` are said anew. */
const AGES_MS = 10_000;

/** @returns {import("../shell.js").View} */
export function view() {
	const openAdd = () => replace(["hosts", "add"], here().query);
	const add = h("button", { type: "button", class: "main", onclick: openAdd }, icon("add"), "Add host");
	const search = h("input", {
		type: "search",
		placeholder: "Search name, kind, label…",
		"aria-label": "Search hosts",
		"aria-keyshortcuts": "/",
		oninput: () => put("q", search.value),
	});
	const state = h(
		"select",
		{ "aria-label": "State", onchange: () => put("state", state.value) },
		[["", "All but revoked"], ["online", "Online"], ["offline", "Offline"], ["revoked", "Revoked"], ["all", "All"]].map(([value, title]) =>
			h("option", { value }, title)
		),
	);
	const shown = h("span", { class: "hint", role: "status" });
	const list = table({ label: "Hosts", key: (host) => host.id, columns: columns(), sort: "name" });
	const empty = h("div", { class: "empty", hidden: true });
	const element = h(
		"div",
		null,
		h(
			"div",
			{ class: "heading" },
			h("div", null, h("h1", null, "Hosts"), h("p", { class: "hint" }, "The hypervisors that mount storage, each with an agent.")),
			h("div", { class: "actions" }, may("admin") && add),
		),
		h("div", { class: "filters" }, search, state, shown),
		h("div", { class: "card flush" }, list.element, empty),
	);

	const dialogs = opener("hosts", async ([ref, what]) => {
		const host = hostOf(ref);
		if (ref === "add" && !what) {
			if (!may("admin")) throw new Error("Only an admin can add a host.");
			const { joinHost } = await import("../dialogs/join-host.js");
			return joinHost;
		}
		if (!host) throw new Error(`There is no host ${ref}.`);
		if (what === "revoke" && may("admin") && host.state !== "revoked") {
			const { revokeHost } = await import("../dialogs/revoke-host.js");
			return async () => {
				if ((await revokeHost(host)) === "revoked") focusNext();
			};
		}
		const { showHost } = await import("../dialogs/host.js");
		return () => showHost(host);
	});
	const endSlash = focusOnSlash(search);
	const endAges = whileVisible(AGES_MS, drawTable);

	/** @returns {import("../table.js").Column<any>[]} */
	function columns() {
		return [
			{
				id: "status",
				title: "Status",
				sort: (host) => hostLook(host).rank,
				look: (host) => host.state,
				draw: (cell, host) => fill(cell, badge(hostLook(host))),
			},
			{
				id: "name",
				title: "Name",
				isHead: true,
				sort: (host) => host.name,
				look: (host) => [host.name, host.state],
				draw: (cell, host) =>
					fill(
						cell,
						h("a", { href: hostAddress(host), class: "name", onclick: keepingFilters(() => hostAddress(host, [], here().query)) }, host.name),
					),
			},
			{
				id: "kinds",
				title: "Kinds",
				look: (host) => host.kinds,
				draw: (cell, host) => fill(cell, chips(host.kinds.map((/** @type {string} */ kind) => kindOf(kind).title))),
			},
			{
				id: "labels",
				title: "Labels",
				look: (host) => host.labels,
				draw: (cell, host) => fill(cell, chips(Object.entries(host.labels).map(([key, value]) => (value ? `${key}: ${value}` : key)), "quiet")),
			},
			{
				id: "version",
				title: "Agent",
				sort: (host) => host.agent_version,
				look: (host) => [host.agent_version, isOld(host)],
				draw: (cell, host) =>
					fill(
						cell,
						host.agent_version,
						isOld(host) && h("span", { class: "badge fair", title: `The newest in the fleet is ${newestVersion()}` }, icon("warning"), "older"),
					),
			},
			{
				id: "joined",
				title: "Joined",
				sort: (host) => new Date(host.joined_at).getTime(),
				look: (host) => [host.joined_at, ago(host.joined_at)],
				draw: (cell, host) => fill(cell, time(host.joined_at, ago(host.joined_at))),
			},
			{
				id: "seen",
				title: "Last seen",
				sort: (host) => (host.state === "online" ? Infinity : new Date(host.last_seen_at ?? 0).getTime()),
				look: (host) => [host.last_seen_at, seenWords(host)],
				draw: (cell, host) => fill(cell, time(host.last_seen_at, seenWords(host))),
			},
			{
				id: "backends",
				title: "Backends healthy",
				sort: (host) => healthyBackends(host).healthy / (healthyBackends(host).all || Infinity),
				look: (host) => [host.state, healthyBackends(host)],
				draw: (cell, host) => fill(cell, backendsOf(host)),
			},
			{
				id: "actions",
				title: "Actions",
				look: (host) => [host.state, host.name, may("admin")],
				draw: (cell, host) =>
					buttons(
						cell,
						may("admin") && host.state !== "revoked"
							? [{ id: "revoke", label: `Revoke ${host.name}`, icon: "remove", run: () => replace(["hosts", hostRef(host), "revoke"], here().query) }]
							: [],
					),
			},
		];
	}

	function drawTable() {
		const { query } = here();
		const needle = (query.get("q") ?? "").toLowerCase(), wanted = query.get("state") ?? "";
		const hosts = [...store.hosts.values()];
		const isWanted = (/** @type {any} */ host) => (wanted === "all" ? true : wanted ? host.state === wanted : host.state !== "revoked");
		const candidates = hosts.filter(isWanted);
		const found = candidates.filter((host) =>
			!needle ||
			[host.name, host.agent_version, ...host.kinds.map((/** @type {string} */ kind) => kindOf(kind).title), ...Object.entries(host.labels).flat()]
				.some((word) => String(word).toLowerCase().includes(needle))
		);
		list.show(found);
		shown.textContent = needle || wanted ? `${found.length} of ${count(hosts.length, "host")}` : count(found.length, "host");
		const isFirst = hosts.every((host) => host.state === "revoked") && !wanted && !needle;
		const reason = found.length > 0 ? "" : isFirst ? "first" : "none";
		list.element.hidden = reason !== "";
		if (empty.dataset.of === reason) return;
		empty.dataset.of = reason;
		empty.hidden = reason === "";
		fill(
			empty,
			reason === "first"
				? [
					h("h2", null, "No host has joined yet"),
					h("p", null, "Install the agent on a hypervisor, make a join token here, and run the command that comes with it on that host."),
					may("admin")
						? h("button", { type: "button", class: "main", onclick: openAdd }, icon("add"), "Add the first host")
						: h("p", { class: "hint" }, "An admin can make a join token."),
				]
				: [h("h2", null, "No host fits the filters"), h("button", { type: "button", onclick: () => replace(["hosts"]) }, "Clear the filters")],
		);
	}

	function drawFilters() {
		const { query } = here();
		state.value = query.get("state") ?? "";
		if (document.activeElement !== search) search.value = query.get("q") ?? "";
	}

	/** The row that opened the dialog is gone: the reader goes on at the next one. */
	function focusNext() {
		const next = list.body.querySelector(".actions button");
		(next instanceof HTMLElement ? next : document.getElementById("main"))?.focus();
	}

	return {
		title: "Hosts",
		element,
		update(change) {
			if (change.everything || change.hosts?.size || change.cells?.length || change.backends?.size) drawTable();
		},
		turn() {
			drawFilters();
			drawTable();
			dialogs.turn();
		},
		end() {
			endSlash();
			endAges();
			dialogs.end();
		},
	};
}

/** @param {any} host */
function isOld(host) {
	return host.state !== "revoked" && host.agent_version !== newestVersion();
}

/** The stream tells nothing of a host that answers, as long as it does. @param {any} host */
function seenWords(host) {
	return host.state === "online" ? "now" : ago(host.last_seen_at);
}

/** @param {string | null} at @param {string} words */
function time(at, words) {
	return h("time", { datetime: at, title: moment(at) }, words);
}

/** @param {string[]} words @param {string} [look] */
function chips(words, look = "") {
	return words.length > 0 ? h("div", { class: "chips" }, words.map((word) => h("span", { class: `chip ${look}` }, word))) : "—";
}

/** @param {any} host */
function backendsOf(host) {
	const { healthy, all } = healthyBackends(host);
	if (all === 0) return "—";
	const made = h("span", { class: healthy === all ? "" : "short-of" }, healthy < all && icon("warning"), `${healthy} of ${all}`);
	set(made, "title", healthy === all ? null : `${count(all - healthy, "backend is", "backends are")} not healthy on this host`);
	return made;
}
