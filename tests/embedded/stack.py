"""One data folder, and `stowage` commands on it as a person types them."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from manager.embedded import children

START_TIMEOUT_S = 90


class Stack:
    """One data folder and the commands on it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        root = Path(__file__).parents[2]
        self._env = {**os.environ, "PYTHONPATH": str(root)}
        self._running: list[subprocess.Popen[str]] = []

    def command(self, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The finished command."""
        env = self._env | environment
        argv = self._argv(*args)
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=START_TIMEOUT_S)

    def foreground(self, *args: str) -> subprocess.Popen[str]:
        """A `stowage up` that runs, maybe not ready yet."""
        self._running.append(
            subprocess.Popen(
                self._argv("up", "--listen", "127.0.0.1:0", *args),
                env=self._env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,
            )
        )
        return self._running[-1]

    def up(self, *args: str) -> dict[str, Any]:
        """What ready.json says once a `stowage up` in the foreground is ready."""
        process = self.foreground(*args)
        path = self.data / "ready.json"
        children.wait_until(lambda: path.exists() or process.poll() is not None, timeout_s=START_TIMEOUT_S)
        assert path.exists(), process.communicate()[0]
        return self.ready()

    def ready(self) -> dict[str, Any]:
        ready: dict[str, Any] = json.loads((self.data / "ready.json").read_text())
        return ready

    def get(self, path: str, url: str | None = None) -> Any:
        return self.call("GET", path, url=url)

    def call(self, method: str, path: str, body: bytes | None = None, *, url: str | None = None) -> Any:
        """The JSON of the answer, None if it has none. Raises HTTPError for a refusal."""
        ready = self.ready()
        headers = {"Authorization": f"Bearer {Path(ready['token_file']).read_text().strip()}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request((url or ready["url"]) + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            text = response.read()
        return json.loads(text) if text else None

    def revoke(self, host: str) -> None:
        self.call("DELETE", f"/v1/hosts/{host}")

    def end(self) -> None:
        assert self.command("down").returncode == 0
        while self._running:
            self._running.pop().communicate()

    def _argv(self, command: str, *args: str) -> list[str]:
        return [sys.executable, "-m", "manager.cli", command, "--data-dir", str(self.data), *args]
