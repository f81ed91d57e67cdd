"""What a test does with backends, over the public API."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from tests.lab.client import Answer, Api
from tests.lab.host import Host
from tests.lab.qemu import wait_until

#: Seconds for what must come by itself: a probe, a reconcile, a server's grace period, all under emulation.
PATIENCE_S = 60.0


class Backend:
    """One that was added."""

    def __init__(self, api: Api, body: dict[str, Any]) -> None:
        self._api = api
        self.id = str(body["id"])
        self.name = str(body["name"])
        self.added = body

    @property
    def path(self) -> str:
        return f"/storage_backends/{self.id}"

    @property
    def mount_dir(self) -> str:
        """Where it is mounted on a host, if its kind is mounted."""
        return f"/var/lib/stowage-agent/mounts/{self.id}"

    def now(self) -> dict[str, Any]:
        """As GET shows it."""
        body: dict[str, Any] = self._api.get(self.path)
        return body

    def edit(self, **changes: Any) -> Answer:
        return self._api("PATCH", self.path, changes)

    def probe(self, host: Host) -> dict[str, Any]:
        """What a probe finds now on that host: status, code, detail, remedy, latency_ms, capacity."""
        answer = self._api("POST", f"{self.path}/probe")
        assert answer.status == 200, answer
        return next(line for line in answer.body["hosts"] if line["host"] == host.name)

    def cell(self, host: Host) -> dict[str, Any]:
        """What is known of it on that host, without asking it."""
        lines = self._api.get(f"{self.path}/hosts")["hosts"]
        return next(line for line in lines if line["host"] == host.name)

    def wait_for(
        self,
        host: Host,
        status: str,
        code: str | None = None,
        *,
        after: dt.datetime | None = None,
        patience_s: float = PATIENCE_S,
    ) -> dict[str, Any]:
        """The cell, once it shows this by itself, by what was observed after that moment."""

        def is_so() -> bool:
            cell = self.cell(host)
            is_new = after is None or dt.datetime.fromisoformat(cell["observed_at"]) > after
            return is_new and (cell["status"], cell["code"]) == (status, code)

        wait_until(is_so, f"{self.name} to be {status} ({code}) on {host.name}", patience_s)
        return self.cell(host)

    def remove(self) -> Answer:
        return self._api("DELETE", self.path)

    def remove_and_tell(self) -> Answer:
        """The answer says what was left, and where."""
        return self._api("DELETE", self.path, Prefer="return=representation")


class Backends:
    """Adds them, on `on` unless the call says otherwise."""

    def __init__(self, api: Api, on: Sequence[Host]) -> None:
        self._api = api
        self._on = on
        self._count = 0

    def attempt(
        self,
        kind: str,
        config: dict[str, Any],
        *,
        on: Sequence[Host] = (),
        credentials: dict[str, str] | None = None,
        **fields: Any,
    ) -> Answer:
        """What the API says to the add."""
        return self._api("POST", "/storage_backends", self._body(kind, config, on, credentials, fields))

    def add(
        self,
        kind: str,
        config: dict[str, Any],
        *,
        on: Sequence[Host] = (),
        credentials: dict[str, str] | None = None,
        **fields: Any,
    ) -> Backend:
        """The backend, added."""
        return self.of(self.attempt(kind, config, on=on, credentials=credentials, **fields))

    def of(self, answer: Answer) -> Backend:
        """What an add answered, if it succeeded."""
        assert answer.status == 201, answer
        return Backend(self._api, answer.body)

    def refused(self, code: str, kind: str, config: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """The first fault of an add that fails with this code, and of which nothing is left."""
        answer = self.attempt(kind, config, **fields)
        assert answer.status == 422, answer
        assert set(answer.codes) == {code}, answer
        assert self._api.get("/storage_backends")["items"] == []
        fault: dict[str, Any] = answer.body["faults"][0]
        assert fault["detail"] and fault["remedy"] and fault["host"]
        return fault

    def preflight(
        self, kind: str, config: dict[str, Any], *, on: Sequence[Host] = (), credentials: dict[str, str] | None = None
    ) -> Answer:
        """The same body, tried without adding anything."""
        return self._api("POST", "/storage_backends/preflight", self._body(kind, config, on, credentials, {}))

    def discover(
        self, kind: str, host: Host, config: dict[str, Any], *, credentials: dict[str, str] | None = None
    ) -> Answer:
        body = {"kind": kind, "config": config, "credentials": credentials}
        return self._api("POST", f"/hosts/{host.name}/discover", body)

    def _body(
        self,
        kind: str,
        config: dict[str, Any],
        on: Sequence[Host],
        credentials: dict[str, str] | None,
        fields: dict[str, Any],
    ) -> dict[str, Any]:
        self._count += 1
        body: dict[str, Any] = {
            "name": f"{kind}-{self._count}",
            "kind": kind,
            "config": config,
            "hosts": {"names": [host.name for host in on or self._on]},
        }
        if credentials is not None:
            body["credentials"] = credentials
        return body | fields
