// A stream of this tab's own, where a browser has no SharedWorker (Chrome on Android).

const STREAM = "/v1/events/stream?changes=true";

/** @param {(message: import("./live.js").Message) => void} listener */
export function own(listener) {
	/** @type {EventSource | null} */
	let source = null;
	const open = () => {
		if (source && source.readyState !== EventSource.CLOSED) return;
		source = new EventSource(STREAM);
		source.onopen = () => listener({ type: "state", state: "live" });
		source.onerror = () => listener({ type: "state", state: source?.readyState === EventSource.CLOSED ? "closed" : "connecting" });
		source.onmessage = (event) => listener({ type: "event", event: JSON.parse(event.data) });
		source.addEventListener("changes", (event) => listener({ type: "changes", changes: JSON.parse(event.data) }));
		source.addEventListener("resync", () => listener({ type: "resync" }));
	};
	const close = () => {
		source?.close();
		source = null;
	};
	// A tab that nobody looks at gives its connection to one that somebody does.
	let wasOpen = false;
	document.addEventListener("visibilitychange", () => {
		if (document.hidden) {
			wasOpen = source !== null;
			close();
		} else if (wasOpen) open();
	});
	return {
		open,
		reopen() {
			close();
			open();
		},
		close,
	};
}
