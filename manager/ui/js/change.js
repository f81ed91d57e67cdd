// Changes that hosts must prove: done at once, or an operation that is watched to its end.

import { call, Problem, send } from "./api.js";

/** Of a change that hosts must prove: what is refused at once is the answer, what takes longer becomes an operation that can be watched, left and stopped. */
const SOON = { Prefer: "wait=2" };

/**
 * What the change gives at its end (null: nothing). Raises Problem.
 * @param {string} method @param {string} path @param {any} [body]
 * @param {{watch?: (operation: any) => void, headers?: Record<string, string>}} [options] watch: called with the operation while it goes on
 * @returns {Promise<any>}
 */
export async function change(method, path, body, { watch, headers } = {}) {
	const { body: answer, status } = await send(method, path, body, { headers: { ...SOON, ...headers } });
	return status === 202 ? await finished(answer.id, watch) : answer;
}

/** @type {Record<string, string>} */
const TITLES = { stuck: "An undo failed; a person must look", cancelled: "It was stopped", failed: "It failed, and was undone" };

/** What became of an operation. Raises Problem when it failed. @param {string} id @param {(operation: any) => void} [watch] */
async function finished(id, watch) {
	for (;;) {
		const operation = await call("GET", `/v1/operations/${id}`);
		watch?.(operation);
		if (operation.state === "succeeded") return operation.result;
		if (operation.state !== "running" && operation.state !== "undoing") {
			throw new Problem({ title: TITLES[operation.state] ?? "It failed", operation: `/v1/operations/${id}`, ...operation.error }, 422);
		}
		await new Promise((resolve) => setTimeout(resolve, 1000));
	}
}
