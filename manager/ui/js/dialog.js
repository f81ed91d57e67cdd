// The contract of every dialog: it stays open until the change is done, shows what the API says where it belongs, and never loses
// what was typed to a slip of the Esc key. Errors live in it: a toast is inert while a modal dialog is open.

import { asCli, asCurl, Problem } from "./api.js";
import { announce, fill, h, icon, say, set } from "./dom.js";
import { words } from "./format.js";

/**
 * @typedef {{
 *   title: string,
 *   body: import("./dom.js").Child,
 *   submit?: {label: string, class?: string, busy?: string},
 *   run?: (progress: (words: string) => void) => Promise<any>,
 *   call?: () => import("./api.js").Call | null,
 *   tools?: HTMLElement[],
 *   showErrors?: (errors: import("./api.js").FieldError[]) => import("./api.js").FieldError[],
 *   isDirty?: () => boolean,
 *   onClose?: (isDone: boolean) => void,
 *   remedies?: (problem: Problem) => HTMLElement[],
 *   cancel?: string,
 * }} Options
 * run: makes the change; its value is the dialog's. call: the request that run makes, to be copied. tools: more buttons of the footer.
 * showErrors: shows them at their fields and gives back those that have none. remedies: buttons that help with a problem.
 */

let numbers = 0;

/** The sheet of dialogs, which the first look at the page does without. Without it they work, if plainly. */
const sheet = h("link", { rel: "stylesheet", href: new URL("../dialog.css", import.meta.url).href });
await new Promise((resolve) => { sheet.onload = sheet.onerror = resolve; document.head.append(sheet); });

/** A modal dialog; `open` gives what run gave, or undefined when it was left. @param {Options} options */
export function dialog(options) {
  const id = `dialog-${(numbers += 1)}`;
  const title = h("h2", { id: `${id}-title` }, options.title);
  const banner = h("div", { class: "banner bad", role: "alert", tabindex: "-1", hidden: true });
  const note = h("div", { class: "banner", role: "status", hidden: true });
  const copied = h("div", { class: "copied", hidden: true });
  const guard = h("div", { class: "banner fair guard", role: "alert", hidden: true }, h("span", null, "Discard what you typed?"),
    h("button", { type: "button", onclick: () => { guard.hidden = true; /** @type {HTMLElement | null} */ (form.querySelector("input, select, textarea"))?.focus(); } }, "Keep editing"),
    h("button", { type: "button", class: "danger", onclick: () => close() }, "Discard"));
  const progress = h("p", { class: "progress", role: "status" });
  const submit = options.submit ? h("button", { type: "submit", class: options.submit.class ?? "main" }, options.submit.label) : null;
  const leave = h("button", { type: "button", onclick: ask }, options.cancel ?? (submit ? "Cancel" : "Close"));
  /** @type {HTMLFormElement} */
  const form = h("form", { novalidate: true, onsubmit: onSubmit, autocomplete: "off" },
    h("header", null, title, h("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: ask }, icon("close"))),
    // What can only be read has perhaps nothing to stop at for the Tab key, and is scrolled by the arrow keys then.
    h("div", { class: "content", ...(submit ? {} : { tabindex: "0", role: "group", "aria-label": "Details" }) }, banner, note, options.body),
    h("footer", null, guard, copied, h("div", { class: "row" },
      options.call && h("div", { class: "copy" },
        h("button", { type: "button", class: "quiet", onclick: () => copy("curl", asCurl) }, "Copy as curl"),
        h("button", { type: "button", class: "quiet", onclick: () => copy("CLI", asCli) }, "Copy as CLI")),
      h("span", { class: "space" }), progress, options.tools, leave, submit)));
  const element = h("dialog", { "aria-labelledby": `${id}-title`, oncancel: onCancel, onclose: onClose }, form);
  let isBusy = false, isDone = false;
  /** @type {any} */
  let result;
  /** @type {(value: any) => void} */
  let resolve = () => {};

  /** @param {Event} event */
  async function onSubmit(event) {
    event.preventDefault();
    if (isBusy || !options.run || submit?.getAttribute("aria-disabled") === "true") return;
    clear();
    busy(true, options.submit?.busy ?? "Working…");
    try {
      result = await options.run((said) => say(progress, said));
      isDone = true;
      busy(false);
      close();
    } catch (error) {
      busy(false);
      if (!(error instanceof Problem)) { console.error(error); tell(new Problem({ title: "The page has failed", detail: String(error) }, 0)); return; }
      tell(error);
    }
  }

  /** @param {boolean} isNow @param {string} [said] */
  function busy(isNow, said = "") {
    isBusy = isNow;
    set(form, "aria-busy", isNow ? "true" : null);
    if (submit) submit.disabled = isNow;
    say(progress, said);
  }

  /** What the API refused, in its words: at the fields, or above them. @param {Problem} problem */
  function tell(problem) {
    const rest = options.showErrors?.(problem.errors) ?? problem.errors;
    const atFields = problem.errors.length - rest.length;
    const isOnlyFields = problem.code === "invalid_field" && rest.length === 0 && atFields > 0;
    fill(banner,
      h("p", null, h("strong", null, problem.title || "It was refused"), " ", isOnlyFields ? (atFields === 1 ? "One field needs attention." : `${atFields} fields need attention.`) : problem.message),
      rest.length > 0 && h("ul", null, rest.map((each) => h("li", null, `${each.pointer}: ${each.detail}`))),
      faultList(problem.faults),
      problem.blockers.length > 0 && h("ul", { class: "blockers" }, problem.blockers.map((each) => h("li", null, h("strong", null, each.name ?? each.id), ` ${words(each.type ?? "")}`, each.reason && `: ${each.reason}`))),
      problem.operation && h("p", null, h("a", { href: `#/operations/${problem.operation.split("/").at(-1)}` }, "What was done and undone")),
      options.remedies?.(problem));
    banner.hidden = false;
    const wrong = form.querySelector("[aria-invalid='true']");
    (wrong instanceof HTMLElement ? wrong : banner).focus();
    banner.scrollIntoView({ block: "nearest" });
  }

  function clear() {
    banner.hidden = true;
    copied.hidden = true;
    options.showErrors?.([]);
  }

  /** @param {string} what @param {(call: import("./api.js").Call) => string} write */
  async function copy(what, write) {
    const call = options.call?.();
    if (!call) return;
    const text = write(call);
    const area = h("textarea", { readonly: true, rows: "4", "aria-label": `The request as ${what}`, spellcheck: "false" });
    area.value = text;
    const said = h("p", { class: "hint", role: "status" });
    fill(copied, said, area);
    copied.hidden = false;
    area.select();
    let isCopied = false;
    try {
      // Missing where the page comes by plain http from another machine.
      if (navigator.clipboard) { await navigator.clipboard.writeText(text); isCopied = true; }
      else isCopied = document.execCommand("copy");
    } catch { /* Selected as it is, it can be copied by hand. */ }
    say(said, isCopied ? `Copied as ${what}.` : "Press Ctrl+C to copy.");
  }

  function isAtRisk() {
    return !isDone && Boolean(options.isDirty?.());
  }

  /** Leaves, unless something typed would be lost. */
  function ask() {
    if (isBusy) return;
    if (isAtRisk() && guard.hidden) { guard.hidden = false; guard.querySelector("button")?.focus(); return; }
    close();
  }

  /** @param {Event} event */
  function onCancel(event) {
    event.preventDefault();
    ask();
  }

  // Also after the third Esc in a row, which no page can refuse: the draft is what remains then.
  function onClose() {
    options.onClose?.(isDone);
    element.remove();
    resolve(result);
  }

  function close() {
    if (element.open) element.close();
  }

  /** @type {any} */ (element).stowageClose = close;
  return {
    element, tell, clear, close,
    /** A notice above the fields that is no error. @param {...import("./dom.js").Child} children */
    notice(...children) { fill(note, ...children); note.hidden = children.length === 0; },
    /** The submit button's reason for being closed; empty opens it. @param {string} why */
    refuse(why) { if (submit) { set(submit, "aria-disabled", why ? "true" : null); set(submit, "title", why || null); } },
    /** @param {() => Promise<void>} work @param {string} said */
    async during(work, said) {
      if (isBusy) return;
      clear();
      busy(true, said);
      try { await work(); } catch (error) { busy(false); if (error instanceof Problem) tell(error); else throw error; return; }
      busy(false);
    },
    /** @returns {Promise<any>} */
    open() {
      document.body.append(element);
      element.showModal();
      const first = form.querySelector(".content :is(input, select, textarea):not([type=hidden])");
      (first instanceof HTMLElement ? first : leave).focus();
      announce(options.title);
      return new Promise((done) => { resolve = done; });
    },
  };
}

/** @param {import("./api.js").Fault[]} faults */
export function faultList(faults) {
  return faults.length > 0 && h("ul", { class: "faults" }, faults.map((fault) => h("li", null,
    h("p", null, fault.host && h("strong", null, `${fault.host}: `), h("span", { class: "code" }, words(fault.code)), " ", fault.detail),
    fault.remedy && h("p", { class: "remedy" }, fault.remedy))));
}

/** A list of names and values. @param {[string, import("./dom.js").Child][]} rows */
export function facts(rows) {
  return h("dl", { class: "facts" }, rows.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}
