#!/usr/bin/python3
"""Runs in every guest of the lab and does what the tests ask of it, over TCP port 5000. Debian 12's Python, standard library only.

One request a connection: a line of JSON and, after it, `stdin` bytes. The answer: a line of JSON and, after it, `out` and
`err` bytes of output. Requests:
    {"argv": […] | "sh": "…", "timeout": s}     a command; {"code", "out", "err", "timed_out", "wall_s"}
    {"put": path, "mode": 0o644}                 a file, its bytes as stdin
    {"untar": folder}                            a tar archive, its bytes as stdin
    {"look": source}                             Python run in this process (starting one takes 0.3 s here); its `answer`
    {"wake": unix seconds, "seed": hex}          after a snapshot was resumed: clock and kernel's random numbers
"""

import fcntl
import json
import os
import signal
import socketserver
import struct
import subprocess
import time
from typing import Any

PORT = 5000
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


class Request(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        line = self.rfile.readline()
        if not line:
            return
        asked = json.loads(line)
        began = time.monotonic()
        stdin = self.rfile.read(asked["stdin"]) if asked.get("stdin") else b""
        code, out, err, timed_out = 0, b"", b"", False
        try:
            if "wake" in asked:
                wake(asked["wake"], bytes.fromhex(asked["seed"]))
            elif "put" in asked:
                put(asked["put"], stdin, asked.get("mode", 0o644))
            elif "look" in asked:
                out = look(asked["look"])
            else:
                if "untar" in asked:
                    os.makedirs(asked["untar"], exist_ok=True)
                    asked["argv"] = ["tar", "-x", "-C", asked["untar"], "-f", "-"]
                code, out, err, timed_out = run(asked, stdin)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test that asked wants to read it
            code, err = 125, repr(error).encode()
        wall_s = round(time.monotonic() - began, 3)
        head = {"code": code, "out": len(out), "err": len(err), "timed_out": timed_out, "wall_s": wall_s}
        self.wfile.write(json.dumps(head).encode() + b"\n" + out + err)


def run(asked: dict[str, Any], stdin: bytes) -> tuple[int, bytes, bytes, bool]:
    process = subprocess.Popen(
        asked.get("argv") or ["/bin/bash", "-c", asked["sh"]],
        env={**os.environ, **ENV},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(stdin, timeout=asked["timeout"])
        return process.returncode, out, err, False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    try:
        out, err = process.communicate(timeout=1)
    except subprocess.TimeoutExpired:
        # Stuck in the kernel; it cannot be waited for.
        out, err = b"", b""
    return -9, out, err, True


def put(path: str, content: bytes, mode: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)


def look(source: str) -> bytes:
    names: dict[str, Any] = {}
    exec(compile(source, "look", "exec"), names)  # noqa: S102 - that is what it is for, in a guest that holds nothing
    return json.dumps(names["answer"]).encode()


def wake(now: float, seed: bytes) -> None:
    time.clock_settime(time.CLOCK_REALTIME, now)
    with open("/dev/urandom", "wb") as random:
        fcntl.ioctl(random, RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
        fcntl.ioctl(random, RNDRESEEDCRNG)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    Server(("0.0.0.0", PORT), Request).serve_forever()
