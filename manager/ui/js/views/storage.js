// Storage: tiles, every backend in one table, the matrix, and what happened last. The dialogs come when they are opened.

import { call } from "../api.js";
import { announce, fill, h, icon, say, set, sparkline, toast } from "../dom.js";
import { eventWords, TONE_ICONS } from "../events.js";
import { ago, bytes, count, words } from "../format.js";
import { badge, lookOf, needsAttention, reasonOf, statusOf, STATUSES } from "../health.js";
import { address, here, put, replace } from "../router.js";
import { backendOf, kindOf, liveHosts, may, store } from "../store.js";
import { buttons, table } from "../table.js";
import { matrix } from "./matrix.js";

/** Shares of the total above which a bar turns amber and red, as in the faults of hosts. */
const [FAIR, BAD] = [0.85, 0.95];
const RECENT = 6;

const dialogs = {
  add: async () => (await import("../dialogs/add-backend.js")).addBackend(),
  edit: async (/** @type {any} */ backend) => (await import("../dialogs/edit-backend.js")).editBackend(backend),
  remove: async (/** @type {any} */ backend) => (await import("../dialogs/remove-backend.js")).removeBackend(backend),
  initialize: async (/** @type {any} */ backend) => (await import("../dialogs/initialize-backend.js")).initializeBackend(backend),
  backend: async (/** @type {any} */ backend) => (await import("../dialogs/backend.js")).showBackend(backend),
  cell: async (/** @type {any} */ backend, /** @type {any} */ host) => (await import("../dialogs/cell.js")).showCell(backend, host),
};

/** @returns {import("../shell.js").View} */
export function view() {
  const refresh = h("button", { type: "button", onclick: probeAll }, icon("refresh"), "Refresh");
  const add = h("button", { type: "button", class: "main", onclick: () => replaceTo("add") }, icon("add"), "Add backend");
  const tiles = ["Backends", "Need attention", "Used", "Live volumes"].map((title) =>
    h("section", { class: "tile", "aria-label": title }, h("h2", null, title), h("p", { class: "figure" }, "–"), h("p", { class: "hint" })));
  const search = h("input", { type: "search", placeholder: "Search name, kind, label…", "aria-label": "Search backends", "aria-keyshortcuts": "/", oninput: () => put("q", search.value) });
  const kind = h("select", { "aria-label": "Kind", onchange: () => put("kind", kind.value) });
  const status = h("select", { "aria-label": "Status", onchange: () => put("status", status.value) },
    h("option", { value: "" }, "Every status"), STATUSES.map((each) => h("option", { value: each.value }, each.word)));
  const shown = h("span", { class: "hint", role: "status" });
  const list = table({ label: "Storage backends", key: (backend) => backend.id, columns: columns() });
  const empty = h("div", { class: "empty", hidden: true });
  const grid = matrix();
  const recent = h("ul", { class: "recent" });
  const moreRecent = h("section", { class: "card", "aria-labelledby": "recent" }, h("h2", { id: "recent" }, "Activity"), recent,
    h("p", null, h("a", { href: address(["activity"]) }, "The whole log")));
  /** @type {any[]} */
  let events = [];

  const element = h("div", null,
    h("div", { class: "heading" }, h("div", null, h("h1", null, "Storage"), h("p", { class: "hint" }, "Where guests' disks live.")),
      h("div", { class: "actions" }, may("operator") && refresh, may("operator") && add)),
    h("div", { class: "tiles" }, tiles),
    h("div", { class: "filters" }, search, kind, status, shown),
    h("div", { class: "card flush" }, list.element, empty),
    h("div", { class: "below" }, grid.element, moreRecent));

  addEventListener("keydown", onKey);
  void readRecent();

  /** @param {KeyboardEvent} event */
  function onKey(event) {
    const isTyping = event.target instanceof Element && event.target.matches("input, select, textarea, dialog *");
    if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    search.focus();
  }

  /** The link leads to the backend, with the filters that are set when it is followed. @param {MouseEvent} event */
  function keepFilters(event) {
    const link = /** @type {HTMLAnchorElement} */ (event.currentTarget);
    link.hash = address([...decodeURIComponent(link.hash.slice(2).split("?")[0]).split("/")], here().query);
  }

  /** The dialog has an address too: `#/storage/NAME/edit`. @param {...string} path */
  function replaceTo(...path) {
    replace(["storage", ...path], here().query);
  }

  /** @returns {import("../table.js").Column<any>[]} */
  function columns() {
    return [
      { id: "status", title: "Status", sort: (b) => lookOf(b).rank, look: (b) => [statusOf(b), b.health.since],
        draw: (cell, b) => fill(cell, badge(lookOf(b), `since ${ago(b.health.since)}`)) },
      { id: "name", title: "Name", isHead: true, sort: (b) => b.name, look: (b) => [b.name, reasonOf(b), b.state, b.labels],
        draw: (cell, b) => fill(cell, h("a", { href: address(["storage", b.name]), class: "name", onclick: keepFilters }, b.name),
          b.state === "draining" && h("span", { class: "chip" }, "draining"),
          reasonOf(b) && h("p", { class: "reason" }, reasonOf(b)),
          Object.keys(b.labels).length > 0 && h("p", { class: "chips" }, Object.entries(b.labels).map(([key, value]) => h("span", { class: "chip quiet" }, value ? `${key}: ${value}` : key)))) },
      { id: "kind", title: "Kind", sort: (b) => kindOf(b.kind).title, look: (b) => [b.kind, b.capabilities],
        draw: (cell, b) => fill(cell, h("div", { class: "chips" }, h("span", { class: "chip" }, kindOf(b.kind).title),
          b.capabilities.includes("external") && h("span", { class: "chip outside" }, "external"))) },
      { id: "capabilities", title: "Capabilities", look: (b) => b.capabilities,
        draw: (cell, b) => {
          const can = b.capabilities.filter((/** @type {string} */ each) => each !== "external");
          fill(cell, h("div", { class: "chips" }, can.length ? can.map((/** @type {string} */ each) => h("span", { class: "chip quiet" }, words(each).replaceAll(" ", "-"))) : "—"));
        } },
      { id: "capacity", title: "Capacity · 24 h", sort: (b) => (b.capacity ? b.capacity.used_bytes / (b.capacity.total_bytes || 1) : -1),
        look: (b) => [b.capacity?.used_bytes, b.capacity?.total_bytes, store.trends.get(b.id)?.samples.at(-1), store.trends.get(b.id)?.full_in_days],
        draw: (cell, b) => fill(cell, capacity(b)) },
      { id: "default", title: "Default", look: (b) => b.is_default,
        draw: (cell, b) => fill(cell, b.is_default ? h("span", { class: "badge good" }, icon("star"), "Default") : "—") },
      { id: "actions", title: "Actions", look: (b) => [b.state, b.is_default, b.live_volumes, b.name, may("operator")],
        draw: (cell, b) => buttons(cell, may("operator") ? actions(b) : []) },
    ];
  }

  /** @param {any} b @returns {import("../table.js").Action[]} */
  function actions(b) {
    const busy = b.state === "creating" ? "it is being added" : b.state === "deleting" ? "it is being removed" : b.state === "stuck" ? "an operation is stuck on it: look at Operations" : undefined;
    const found = [
      { id: "edit", label: `Edit ${b.name}`, icon: /** @type {const} */ ("edit"), why: busy, run: () => replaceTo(b.name, "edit") },
      { id: "remove", label: `Remove ${b.name}`, icon: /** @type {const} */ ("remove"), run: () => replaceTo(b.name, "remove"),
        why: busy ?? (b.is_default ? "it is the default; make another backend the default first" : undefined) },
    ];
    const first = { id: "initialize", label: `Initialize ${b.name}`, icon: /** @type {const} */ ("initialize"), text: "Initialize", class: "main small", run: () => replaceTo(b.name, "initialize") };
    return b.state === "needs_initialization" ? [first, ...found] : found;
  }

  function drawTable() {
    const { query } = here();
    const needle = (query.get("q") ?? "").toLowerCase();
    const backends = [...store.backends.values()];
    const found = backends.filter((b) =>
      (!query.get("kind") || b.kind === query.get("kind")) && (!query.get("status") || statusOf(b) === query.get("status")) &&
      (!needle || [b.name, kindOf(b.kind).title, b.kind, ...Object.entries(b.labels).flat(), ...Object.values(b.config)].some((word) => String(word).toLowerCase().includes(needle))));
    list.show(found);
    const isEmpty = backends.length === 0, isNone = !isEmpty && found.length === 0;
    list.element.hidden = isEmpty || isNone;
    if (empty.hidden !== !(isEmpty || isNone) || empty.dataset.of !== String(isEmpty)) {
      empty.hidden = !(isEmpty || isNone);
      empty.dataset.of = String(isEmpty);
      fill(empty, isEmpty
        ? [h("h2", null, "No storage yet"), h("p", null, "Register a folder, an NFS export, an SMB share or a LUN once, and every host mounts and proves it."),
          may("operator") ? h("button", { type: "button", class: "main", onclick: () => replaceTo("add") }, icon("add"), "Add the first backend") : h("p", { class: "hint" }, "An operator can add one.")]
        : [h("h2", null, "Nothing matches"), h("p", null, "No backend fits the search and the filters."),
          h("button", { type: "button", onclick: () => replace(["storage"], new URLSearchParams()) }, "Clear them")]);
    }
    say(shown, found.length === backends.length ? "" : `${found.length} of ${backends.length} shown`);
  }

  function drawTiles() {
    const backends = [...store.backends.values()];
    const odd = backends.filter(needsAttention);
    const known = backends.filter((b) => b.capacity);
    const used = known.reduce((sum, b) => sum + b.capacity.used_bytes, 0), total = known.reduce((sum, b) => sum + b.capacity.total_bytes, 0);
    /** @type {Map<string, number>} */
    const kinds = new Map();
    for (const b of odd) kinds.set(lookOf(b).word.toLowerCase(), (kinds.get(lookOf(b).word.toLowerCase()) ?? 0) + 1);
    const online = liveHosts().filter((host) => host.state === "online").length;
    const figures = [
      [String(backends.length), `${backends.filter((b) => statusOf(b) === "healthy").length} healthy`],
      [String(odd.length), [...kinds].map(([word, n]) => `${n} ${word}`).join(", ") || "all is well"],
      [known.length ? bytes(used) : "–", known.length ? `of ${bytes(total)}` : "no figures yet"],
      [String(backends.reduce((sum, b) => sum + b.live_volumes, 0)), `on ${count(liveHosts().length, "host")}, ${online} online`],
    ];
    tiles.forEach((tile, n) => { say(tile.children[1], figures[n][0]); say(tile.children[2], figures[n][1]); });
    set(tiles[1], "class", odd.length ? "tile bad" : "tile");
  }

  function drawFilters() {
    const { query } = here();
    if (kind.options.length !== store.kinds.length + 1) {
      fill(kind, h("option", { value: "" }, "Every kind"), store.kinds.map((each) => h("option", { value: each.kind }, each.title)));
    }
    kind.value = query.get("kind") ?? "";
    status.value = query.get("status") ?? "";
    if (document.activeElement !== search) search.value = query.get("q") ?? "";
  }

  async function readRecent() {
    try {
      events = (await call("GET", `/v1/events?order=desc&limit=${RECENT}`)).items;
      drawRecent();
    } catch { fill(recent, h("li", { class: "hint" }, "The log could not be read")); }
  }

  function drawRecent() {
    fill(recent, events.length ? events.map((event) => {
      const { words: said, tone } = eventWords(event);
      return h("li", null, icon(TONE_ICONS[tone]),
        h("div", { class: tone }, h("p", null, h("strong", null, event.data.name ?? ""), ` ${said}`), h("p", { class: "hint" }, `${ago(event.time)} · ${event.type} · ${event.actor}`)));
    }) : h("li", { class: "hint" }, "Nothing has happened yet"));
  }

  async function probeAll() {
    set(refresh, "aria-busy", "true");
    refresh.disabled = true;
    try {
      // At least a blink of it, or nobody sees that something was done.
      await Promise.all([call("POST", "/v1/storage_backends/probe"), new Promise((resolve) => setTimeout(resolve, 300))]);
      announce("Every backend was probed");
      toast("Every backend was probed");
    } catch (problem) {
      toast("The backends could not be probed", { detail: /** @type {Error} */ (problem).message, isBad: true });
    }
    refresh.disabled = false;
    set(refresh, "aria-busy", null);
  }

  /** The dialog that the address names is open; none for an address without one. */
  function openDialog() {
    const [name, what] = here().path;
    const key = [name, what].join("/");
    if (opened === key) return;
    const present = document.querySelector("dialog[open]");
    opened = key;
    if (present && /** @type {any} */ (present).stowageClose) /** @type {any} */ (present).stowageClose();
    if (!name) return;
    const done = () => { if (opened === key) { opened = ""; if (here().page === "storage") replaceTo(); } };
    /** @param {Promise<any>} dialog */
    const follow = (dialog) => dialog.then((closed) => closed?.closed ?? closed).catch((error) => toast("This could not be opened", { detail: error.message, isBad: true })).finally(done);
    if (name === "add" && !what) { void follow(dialogs.add()); return; }
    const backend = backendOf(name);
    if (!backend) { toast(`There is no backend ${name}`, { isBad: true }); done(); return; }
    if (what === "edit") void follow(dialogs.edit(backend));
    else if (what === "remove") void follow(dialogs.remove(backend).then((closed) => { if (closed === "removed") focusNext(); }));
    else if (what === "initialize") void follow(dialogs.initialize(backend));
    else if (!what) void follow(dialogs.backend(backend));
    else void follow(dialogs.cell(backend, liveHosts().find((host) => host.name === what)));
  }
  let opened = "/";

  /** The row that opened the dialog is gone: the reader goes on at the next one. */
  function focusNext() {
    const next = list.body.querySelector(".actions button:not([aria-disabled])");
    (next instanceof HTMLElement ? next : document.getElementById("main"))?.focus();
  }

  return {
    title: "Storage",
    element,
    update(change) {
      if (change.everything || change.backends || change.trends || change.hosts) { drawFilters(); drawTiles(); drawTable(); }
      if (change.event) { events = [change.event, ...events].slice(0, RECENT); drawRecent(); }
      grid.update(change);
    },
    turn() { drawFilters(); drawTable(); openDialog(); },
    end() { removeEventListener("keydown", onKey); },
  };
}

/** @param {any} backend */
function capacity(backend) {
  const found = backend.capacity;
  if (!found) return "—";
  const share = found.total_bytes ? found.used_bytes / found.total_bytes : 0;
  const bar = h("div", { class: `bar ${share >= BAD ? "bad" : share >= FAIR ? "fair" : ""}`, "aria-hidden": "true" }, h("div"));
  /** @type {HTMLElement} */ (bar.firstElementChild).style.setProperty("width", `${(share * 100).toFixed(1)}%`);
  const trend = store.trends.get(backend.id);
  const days = trend?.full_in_days;
  const samples = trend?.samples ?? [];
  return h("div", { class: "capacity" },
    h("div", null, bar, h("p", null, `${bytes(found.used_bytes)} / ${bytes(found.total_bytes)} (${Math.round(share * 100)} %)`),
      days !== null && days !== undefined && h("p", { class: days < 14 ? "fair" : "hint" }, `full in about ${days < 1 ? "a day" : count(Math.round(days), "day")}`)),
    samples.length > 1 && sparkline(samples.map((each) => each.used_bytes), Math.max(...samples.map((each) => each.total_bytes)),
      `Used in the last 24 hours: from ${bytes(samples[0].used_bytes)} to ${bytes(samples.at(-1).used_bytes)}`));
}
