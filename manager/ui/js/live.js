// What the manager tells by itself: through the worker that all tabs share, or where there is none through a stream of this tab's own.

/**
 * @typedef {{type: "state", state: "live" | "connecting" | "closed"} | {type: "event", event: any} |
 *   {type: "changes", changes: any} | {type: "resync"} | {type: "session"}} Message  session: another may be signed in
 */

/** Messages go to the listener from `open` on. @param {(message: Message) => void} listener */
export async function connect(listener) {
	return "SharedWorker" in globalThis ? shared(listener) : (await import("./live-alone.js")).own(listener);
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
	addEventListener("pagehide", () => worker.port.postMessage("bye"));
	addEventListener("pageshow", (event) => {
		if (event.persisted) location.reload();
	});
	/** @param {"open" | "reopen" | "close"} word */
	const say = (word) => worker.port.postMessage(word);
	return { open: () => say("open"), reopen: () => say("reopen"), close: () => say("close") };
}
