// What views have in common: the key "/" leads to their search field, and what ages is said anew while somebody looks.

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

/** Calls the work every so often while somebody looks at the page; call what it returns to end it. @param {number} ms @param {() => void} work */
export function whileVisible(ms, work) {
	const timer = setInterval(() => {
		if (!document.hidden) work();
	}, ms);
	return () => clearInterval(timer);
}
