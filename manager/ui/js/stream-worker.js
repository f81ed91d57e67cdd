// One stream of events for all tabs: HTTP/1.1 gives a browser six connections to a host, and each EventSource holds one.
// Tabs that have gone cannot be told from others; a message to one costs nothing.

/** @type {MessagePort[]} */
const tabs = [];
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
  tabs.push(tab);
  tab.onmessage = ({ data }) => {
    if (data === "open" && (source === null || source.readyState === EventSource.CLOSED)) open();
    else if (data === "open") tab.postMessage({ type: "state", state });
    else if (data === "close") { source?.close(); source = null; turn("closed"); }
  };
};
