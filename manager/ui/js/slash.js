// The key "/" leads to a view's search field, unless somebody is typing or a dialog is open.

/** Call what it returns when the view goes. @param {HTMLElement} search */
export function focusOnSlash(search) {
  /** @param {KeyboardEvent} event */
  function onKey(event) {
    const isTyping = event.target instanceof Element && event.target.matches("input, select, textarea, dialog *");
    if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    search.focus();
  }
  addEventListener("keydown", onKey);
  return () => removeEventListener("keydown", onKey);
}
