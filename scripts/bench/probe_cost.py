"""What one health probe costs an agent in processor time: the agent, its worker process and the worker's children together.

    .venv/bin/python scripts/bench/probe_cost.py [PROBES]

Starts `stowage up` in a folder of its own and has its one local_file backend probed over the API, so each figure includes the
command over the bus and the answer, which a scheduled probe has not: it is an upper bound. What the agent uses meanwhile without being
asked (beats, its own probes) is measured before and taken off. The floor is the probe's own system calls in one bare process.
Processor time is counted in ticks of the kernel (10 ms as a rule), hence the many probes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGET_MS = 5.0
_IDLE_S = 10.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory(prefix="stowage-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o711)
        data = Path(folder) / "data"
        stack = [sys.executable, "-m", "manager.cli", "up", "--data-dir", str(data), "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(stack, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not (data / "ready.json").exists():
                if process.poll() is not None:
                    sys.exit("stowage up ended; run it by hand to see why")
                time.sleep(0.1)
            measure(json.loads((data / "ready.json").read_text()), count)
            floor(Path(folder), count)
        finally:
            process.terminate()
            process.wait(60)


def measure(ready: dict[str, object], count: int) -> None:
    """Prints the agent's cost of a probe."""
    pids = ready["pids"]
    assert isinstance(pids, dict)
    (agent,) = pids["agents"].values()
    token = Path(str(ready["token_file"])).read_text().strip()
    probe(str(ready["url"]), token)
    began, idle_from = time.monotonic(), processor_s(agent)
    time.sleep(_IDLE_S)
    idle = (processor_s(agent) - idle_from) / (time.monotonic() - began)
    began, used_from = time.monotonic(), processor_s(agent)
    for _ in range(count):
        probe(str(ready["url"]), token)
    took_s = time.monotonic() - began
    used_s = processor_s(agent) - used_from - idle * took_s
    per_ms = used_s / count * 1000
    verdict = "met" if per_ms < TARGET_MS else "MISSED"
    print(f"probes                           {count}, {count / took_s:.0f} a second")
    print(f"agent without being asked        {idle * 1000:.2f} ms of processor time a second")
    print(f"a probe, agent and workers       {per_ms:.2f} ms of processor time (target < {TARGET_MS:g} ms: {verdict})")


def floor(folder: Path, count: int) -> None:
    """Prints what the same system calls cost in one bare process."""
    place = folder / "bare"
    place.mkdir()
    code = (
        "import sys, time; from agent.jobs import prove;"
        f"args = dict(dir={str(place)!r}, mount_root='', file_name='.probe', on_missing='ignore',"
        " marker=dict(backend_id='x', fleet_id='y'));"
        f" began = time.process_time(); [prove(args) for _ in range({count})];"
        f" print((time.process_time() - began) / {count} * 1000)"
    )
    bare = float(
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )
    print(f"floor: the bare system calls     {bare:.2f} ms")


def probe(url: str, token: str) -> None:
    request = urllib.request.Request(f"{url}/v1/storage_backends/local/probe", b"", {"Authorization": f"Bearer {token}"}, method="POST")  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        (line,) = json.load(answer)["hosts"]
    if line["status"] != "healthy":
        sys.exit(f"the probe says {line}")


def processor_s(agent: int) -> float:
    """Of the agent and its children, ended ones and theirs included (proc(5), stat, 14 to 17)."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat.parent.name) == agent or int(words[1]) == agent:
            ticks += sum(map(int, words[11:15]))
    return ticks / _TICKS_PER_S


if __name__ == "__main__":
    main()
