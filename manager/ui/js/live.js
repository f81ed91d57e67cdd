// What the manager tells by itself: through the worker that all tabs share, or where there is none through a stream of this tab's own.

/**
 * @typedef {{type: "state", state: "live" | "connecting" | "closed"} | {type: "event", event: any} |
 *   {type: "changes", changes: any} | {type: "resync"}} Message
 */

const STREAM = "/v1/events/stream?changes=true";

/** Messages go to the listener from `open` on. @param {(message: Message) => void} listener */
export function connect(listener) {
  return "SharedWorker" in globalThis ? shared(listener) : own(listener);
}

/** @param {(message: Message) => void} listener */
function shared(listener) {
  const address = new URL("stream-worker.js", import.meta.url).href;
  const policy = /** @type {any} */ (globalThis).trustedTypes?.createPolicy("stowage-worker", {
    createScriptURL: (/** @type {string} */ url) => {
      if (url !== address) throw new TypeError("no other worker is started here");
      return url;
    },
  });
  const worker = new SharedWorker(policy ? policy.createScriptURL(address) : address, { name: "stowage" });
  worker.port.onmessage = ({ data }) => listener(data);
  worker.port.start();
  return { open: () => worker.port.postMessage("open"), close: () => worker.port.postMessage("close") };
}

/** @param {(message: Message) => void} listener */
function own(listener) {
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
  const close = () => { source?.close(); source = null; };
  // A tab that nobody looks at gives its connection to one that somebody does.
  let wasOpen = false;
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { wasOpen = source !== null; close(); } else if (wasOpen) open();
  });
  return { open, close };
}
