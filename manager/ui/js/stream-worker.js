// One stream of events for all tabs: HTTP/1.1 gives a browser six connections to a host, and each EventSource holds one.
// A tab says when it goes; of one that could not, a message costs nothing.

/** @type {Set<MessagePort>} */
const tabs = new Set();
/** @type {EventSource | null} */
let source = null;
let state = "connecting";

/** @param {any} message */
function tell(message) {
	for (const tab of tabs) tab.postMessage(message);
}

/** @param {string} next */
function turn(next) {
	state = next;
	tell({ type: "state", state });
}

function open() {
	source?.close();
	source = new EventSource("/v1/events/stream?changes=true");
	source.onopen = () => turn("live");
	// Closed: refused, for the session is over or the manager unwell. Else the browser tries again by itself.
	source.onerror = () => turn(source?.readyState === EventSource.CLOSED ? "closed" : "connecting");
	source.onmessage = (event) => tell({ type: "event", event: JSON.parse(event.data) });
	source.addEventListener("changes", (event) => tell({ type: "changes", changes: JSON.parse(event.data) }));
	source.addEventListener("resync", () => tell({ type: "resync" }));
}

/** @type {any} */ (self).onconnect = (/** @type {MessageEvent} */ connected) => {
	const tab = connected.ports[0];
	tab.onmessage = ({ data }) => {
		if (data === "bye") {
			tabs.delete(tab);
			return;
		}
		tabs.add(tab);
		if (data === "close") {
			source?.close();
			source = null;
			turn("closed");
		} // Somebody has signed in: the stream is to be his, and every tab asks who that is.
		else if (data === "reopen") {
			open();
			tell({ type: "session" });
		} else if (source === null || source.readyState === EventSource.CLOSED) open();
		else tab.postMessage({ type: "state", state });
	};
};
