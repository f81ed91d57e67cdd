// Reading again, often enough and not more often: what the stream tells of comes in bursts.

/**
 * `ask` has the work done soon: never twice within the time, never beside itself, and always once more after the last asking.
 * @param {number} ms @param {() => Promise<void>} work
 */
export function paced(ms, work) {
	/** @type {ReturnType<typeof setTimeout> | undefined} */
	let timer;
	let begun = -Infinity, isWanted = false, isRunning = false, isOver = false;

	async function run() {
		isWanted = false;
		isRunning = true;
		begun = performance.now();
		try {
			await work();
		} finally {
			isRunning = false;
			if (isWanted) wait();
		}
	}

	function wait() {
		if (!isOver) timer = setTimeout(run, Math.max(0, begun + ms - performance.now()));
	}

	return {
		ask() {
			if (isWanted) return;
			isWanted = true;
			if (!isRunning) wait();
		},
		stop() {
			isOver = true;
			clearTimeout(timer);
		},
	};
}
