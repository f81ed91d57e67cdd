// One backend: what it is, and how each host sees it.

import { call, part } from "../api.js";
import { dialog, facts } from "../dialog.js";
import { fill, h } from "../dom.js";
import { ago, bytes, labelText, milliseconds, moment, words } from "../format.js";
import { badge, cellLook, lookOf, reasonOf } from "../health.js";
import { kindOf, may } from "../store.js";

/** @param {any} backend @returns {Promise<any>} */
export async function showBackend(backend) {
  const path = `/v1/storage_backends/${part(backend.id)}`;
  const hosts = h("div", { role: "status" });
  const properties = kindOf(backend.kind).config_schema.properties;
  /** @param {any[]} seen */
  const draw = (seen) => fill(hosts, h("ul", { class: "faults" }, seen.map((each) => h("li", null,
    h("p", null, h("a", { href: `#/storage/${part(backend.name)}/${part(each.host)}` }, each.host), " ", badge(cellLook(each)),
      each.latency_ms !== null && each.latency_ms !== undefined && ` ${milliseconds(each.latency_ms)}`, h("span", { class: "hint" }, ` ${ago(each.observed_at)}`)),
    each.detail && h("p", null, each.code && h("span", { class: "code" }, words(each.code)), ` ${each.detail}`), each.remedy && h("p", { class: "remedy" }, each.remedy)))));
  const probe = h("button", { type: "button", onclick: () => box.during(async () => draw((await call("POST", `${path}/probe`)).hosts), "Every host probes it…") }, "Probe now");
  const box = dialog({
    title: backend.name,
    body: [
      h("p", null, badge(lookOf(backend)), " ", reasonOf(backend)),
      facts([
        ["Kind", kindOf(backend.kind).title], ["State", words(backend.state)], ["Default", backend.is_default ? "yes" : "no"],
        ...Object.entries(backend.config).map(([key, value]) => /** @type {[string, any]} */ ([properties[key]?.title ?? key, value === "" ? "—" : String(value)])),
        ["Credentials", backend.has_credentials ? "kept by the hosts" : "none"],
        ["Capacity", backend.capacity ? `${bytes(backend.capacity.used_bytes)} of ${bytes(backend.capacity.total_bytes)}, ${bytes(backend.capacity.available_bytes)} available` : "not known"],
        ["Live volumes", h("a", { href: `#/volumes?backend=${part(backend.name)}` }, String(backend.live_volumes))],
        ["Hosts", backend.hosts.names.includes("*") ? "every host" : backend.hosts.names.join(", ")], ["Labels", labelText(backend.labels) || "—"],
        ["Version", `${backend.version}, generation ${backend.generation}`], ["Added", moment(backend.created_at)], ["Id", h("code", null, backend.id)],
      ]),
      h("h3", null, "As each host sees it"), hosts,
    ],
    tools: may("operator") ? [probe] : [],
    call: () => ({ method: "GET", path: `/v1/storage_backends/${part(backend.name)}` }),
  });
  draw((await call("GET", `${path}/hosts`)).hosts);
  return box.open();
}
