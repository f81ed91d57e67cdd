// Health by host: one cell a backend and host, painted at once and then touched one by one. One stop of the Tab key; arrows move within.

import { h, inTurns, say, set } from "../dom.js";
import { milliseconds } from "../format.js";
import { cellLook } from "../health.js";
import { address, here } from "../router.js";
import { liveHosts, store } from "../store.js";

/** The matrix as a card; `update` takes the store's changes. */
export function matrix() {
  const grid = h("div", { class: "matrix", role: "grid", "aria-label": "Health by host", onkeydown: onKey, onclick: onClick, onfocusin: onFocus });
  const scroll = h("div", { class: "scroll" }, grid);
  const none = h("p", { class: "hint" });
  const element = h("section", { class: "card", "aria-labelledby": "matrix" }, h("h2", { id: "matrix" }, "Health by host"),
    h("p", { class: "hint" }, "Each host probes each backend. A backend is only as healthy as its worst host."), none, scroll);
  /** @type {Map<string, HTMLElement>} */
  let cells = new Map();
  /** @type {Map<string, HTMLElement>} */
  let heads = new Map();
  let drawn = "";

  /** The rows and columns are those of the store; what is there already is left alone when they have not changed. */
  function draw() {
    const hosts = liveHosts(), backends = [...store.backends.values()];
    const shape = JSON.stringify([hosts.map((each) => [each.id, each.name]), backends.map((each) => [each.id, each.name])]);
    const isBare = hosts.length === 0 || backends.length === 0;
    set(none, "hidden", !isBare);
    set(scroll, "hidden", isBare);
    say(none, hosts.length ? "No backend yet." : "No host has joined yet: make a join token on the page Hosts.");
    if (shape !== drawn) {
      drawn = shape;
      cells = new Map();
      heads = new Map();
      const focused = document.activeElement instanceof HTMLElement ? document.activeElement.dataset.key : undefined;
      grid.style.setProperty("--hosts", String(hosts.length));
      grid.replaceChildren(
        h("div", { role: "row", class: "row" }, h("div", { role: "columnheader" }, "Backend"), hosts.map((host) => {
          const head = h("div", { role: "columnheader", class: "host" }, h("a", { href: address(["hosts"], { q: host.name }), tabindex: "-1" }, host.name));
          heads.set(host.id, head);
          return head;
        })));
      inTurns(backends, (some) => grid.append(...some.map((backend) => row(backend, hosts))), () => drawn === shape);
      const again = (focused && cells.get(focused)) || null;
      if (again) again.focus();
      set(again ?? cells.values().next().value ?? grid, "tabindex", "0");
    }
    for (const host of hosts) {
      const head = heads.get(host.id);
      if (head) { set(head, "class", `host ${host.state}`); set(head, "title", host.state === "online" ? host.name : `${host.name} is offline`); }
    }
  }

  /** @param {any} backend @param {any[]} hosts */
  function row(backend, hosts) {
    return h("div", { role: "row", class: "row" }, h("div", { role: "rowheader", title: backend.name }, backend.name), hosts.map((host) => {
      const key = `${backend.id}/${host.id}`;
      const cell = h("div", { role: "gridcell", tabindex: "-1", dataset: { key } });
      cells.set(key, cell);
      paint(cell, backend, host);
      return cell;
    }));
  }

  /** @param {HTMLElement} element @param {any} backend @param {any} host */
  function paint(element, backend, host) {
    const cell = store.cells.get(backend.id)?.get(host.id);
    if (!cell) {
      set(element, "class", "cell not");
      set(element, "aria-label", `${backend.name} on ${host.name}: not for this host`);
      say(element, "–");
      return;
    }
    const look = cellLook(cell);
    const isTimed = cell.status === "healthy" && cell.latency_ms !== undefined && cell.latency_ms !== null;
    const words = isTimed ? milliseconds(cell.latency_ms) : look.word;
    set(element, "class", `cell ${look.tone} i-${look.icon}`);
    set(element, "aria-label", `${backend.name} on ${host.name}: ${look.word}${isTimed ? `, ${words}` : ""}`);
    set(element, "title", cell.detail || null);
    say(element, words);
  }

  /** @param {string} key */
  function touch(key) {
    const element = cells.get(key);
    if (!element) return;
    const [backend, host] = key.split("/");
    const [b, on] = [store.backends.get(backend), store.hosts.get(host)];
    if (b && on) paint(element, b, on);
  }

  /** @param {KeyboardEvent} event */
  function onKey(event) {
    const at = event.target instanceof HTMLElement ? event.target : null;
    if (!at?.dataset.key) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(at.dataset.key); return; }
    const row = /** @type {Element} */ (at.parentElement);
    const column = [...row.children].indexOf(at);
    /** @type {Record<string, Element | null | undefined>} */
    const next = {
      ArrowRight: at.nextElementSibling, ArrowLeft: column > 1 ? at.previousElementSibling : null,
      ArrowDown: row.nextElementSibling?.children[column], ArrowUp: row.previousElementSibling?.children[column],
      Home: row.children[1], End: row.lastElementChild,
    };
    const to = next[event.key];
    if (to === undefined && !(event.key in next)) return;
    event.preventDefault();
    if (to instanceof HTMLElement && to.dataset.key) to.focus();
  }

  /** @param {FocusEvent} event */
  function onFocus(event) {
    const at = event.target instanceof HTMLElement && event.target.dataset.key ? event.target : null;
    if (!at) return;
    const before = grid.querySelector("[data-key][tabindex='0']");
    if (before && before !== at) set(before, "tabindex", "-1");
    set(at, "tabindex", "0");
  }

  /** @param {MouseEvent} event */
  function onClick(event) {
    const at = event.target instanceof HTMLElement ? event.target.closest("[data-key]") : null;
    if (at instanceof HTMLElement && at.dataset.key) open(at.dataset.key);
  }

  /** @param {string} key */
  function open(key) {
    const [backend, host] = key.split("/");
    const [b, on] = [store.backends.get(backend), store.hosts.get(host)];
    if (b && on) location.hash = address(["storage", b.name, on.name], here().query);
  }

  return {
    element,
    /** @param {import("../store.js").Change} change */
    update(change) {
      if (change.everything || change.backends?.size || change.hosts?.size) draw();
      if (change.everything) inTurns([...cells.keys()], (some) => some.forEach(touch), () => true, 1_500);
      for (const { backend_id, host_id } of change.cells ?? []) touch(`${backend_id}/${host_id}`);
    },
  };
}
