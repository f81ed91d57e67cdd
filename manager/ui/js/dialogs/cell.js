// One cell of the matrix: what the host found when it last probed the backend, and what to do about it.

import { call, part } from "../api.js";
import { dialog, facts } from "../dialog.js";
import { fill, h } from "../dom.js";
import { ago, bytes, milliseconds, moment, words } from "../format.js";
import { badge, cellLook } from "../health.js";
import { may } from "../store.js";

/** @param {any} backend @param {any} host @returns {Promise<any>} */
export async function showCell(backend, host) {
  const path = `/v1/storage_backends/${part(backend.id)}`;
  const place = h("div", { role: "status" });

  async function draw() {
    const [{ hosts }, { items }] = await Promise.all([call("GET", `${path}/hosts`), call("GET", `${path}/hosts/${part(host.id)}/probes`)]);
    const seen = hosts.find((/** @type {any} */ each) => each.host_id === host.id);
    if (!seen) { fill(place, h("p", null, `${backend.name} is not for ${host.name}.`)); return; }
    fill(place,
      h("p", null, badge(cellLook(seen)), seen.code && [" ", h("span", { class: "code" }, words(seen.code))], seen.detail && ` ${seen.detail}`),
      seen.remedy && h("p", { class: "remedy" }, seen.remedy),
      facts([
        ["Last probed", seen.observed_at ? `${moment(seen.observed_at)}, ${ago(seen.observed_at)}` : "not yet"],
        ["Took", seen.latency_ms === null || seen.latency_ms === undefined ? "—" : milliseconds(seen.latency_ms)],
        ["Capacity", seen.capacity ? `${bytes(seen.capacity.used_bytes)} of ${bytes(seen.capacity.total_bytes)}` : "—"],
        ["Config", seen.observed_generation === seen.desired_generation ? `generation ${seen.desired_generation}` : `generation ${seen.observed_generation ?? "–"}, wanted is ${seen.desired_generation}`],
        ["Host", `${host.name}, ${host.state}`],
      ]),
      h("h3", null, "Last probes"),
      items.length > 0 ? h("ol", { class: "faults" }, items.map((/** @type {any} */ each) => h("li", null,
        h("p", null, badge(cellLook(each)), each.latency_ms !== null && each.latency_ms !== undefined && ` ${milliseconds(each.latency_ms)}`, h("span", { class: "hint" }, ` ${moment(each.observed_at)}`)),
        each.detail && h("p", null, each.code && h("span", { class: "code" }, words(each.code)), ` ${each.detail}`))))
        : h("p", { class: "hint" }, "None since this manager was started."));
  }

  const probe = h("button", { type: "button", onclick: () => box.during(async () => { await call("POST", `${path}/probe`); await draw(); }, "Probing…") }, "Probe now");
  const box = dialog({
    title: `${backend.name} on ${host?.name ?? "an unknown host"}`,
    body: host ? place : h("p", null, "There is no such host."),
    tools: host && may("operator") ? [probe] : [],
    call: () => ({ method: "GET", path: `/v1/storage_backends/${part(backend.name)}/hosts` }),
  });
  if (host) await draw();
  return box.open();
}
