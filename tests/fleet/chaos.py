"""A storm over a fleet: many clients add and remove backends while managers are killed and paused and messages get lost.

    python -m tests.fleet.chaos --adds 1000

Each add and remove is asked again, of whichever replica lives, until its end is known; then the fleet must be as the answers said.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from manager.embedded import identity, postgres
from manager.embedded.postgres import Postgres
from schemas.ids import new_id
from schemas.logs import set_up_logging
from tests.fleet.audit import backend_event_violations, event_violations
from tests.fleet.fleet import Fleet, fleet, start_zygote, until
from tests.fleet.lossy_bus import LossyBus, Weather

REPLICAS = ("manager-1", "manager-2", "manager-3")
HOSTS = ("hv1", "hv2", "hv3", "hv4")
#: The host on which a third of the adds fails for good, and the server that does not let it in.
SHUT_OUT = ("hv3", "closed")
LEASE_S = 2.0
COMMAND_TTL_S = 0.5
#: Seconds after which a key whose first request died before it began anything is free again.
ABANDONED_S = 4.0
_CLIENT_TIMEOUT_S = 6.0
#: Seconds until a client gives up on one add or remove.
_CLIENT_PATIENCE_S = 180.0


@dataclass
class Ledger:
    """What clients were told. live, gone: names. oddities: answers that nobody should get."""

    live: set[str] = field(default_factory=lambda: set[str]())
    added: set[str] = field(default_factory=lambda: set[str]())
    removed: set[str] = field(default_factory=lambda: set[str]())
    refused: set[str] = field(default_factory=lambda: set[str]())
    oddities: list[str] = field(default_factory=lambda: list[str]())
    counts: Counter[str] = field(default_factory=lambda: Counter[str]())


class Storm:
    """`blow` does it all; `violations` says what is wrong afterwards."""

    def __init__(self, fleet: Fleet, *, operations: int, clients: int, seed: int) -> None:
        self.fleet = fleet
        self.ledger = Ledger()
        self.random = random.Random(seed)
        self.weather = Weather(lose=0.04, double=0.05, delay=0.08, random=random.Random(seed + 1))
        self._operations = operations
        self._clients = clients
        self._urls: dict[str, str] = {}
        self._token = ""
        self.seconds = 0.0

    async def blow(self) -> None:
        for replica in REPLICAS:
            await self._start(replica)
        self.fleet.make_bus = functools.partial(LossyBus, weather=self.weather)
        self.fleet.world.closed.add(SHUT_OUT)
        calm, self.weather.lose, self.weather.delay = (self.weather.lose, self.weather.delay), 0.0, 0.0
        for host in HOSTS:
            await self.fleet.agent(host)
        self.weather.lose, self.weather.delay = calm
        begun_at = time.monotonic()
        killer = asyncio.create_task(self._kill_for_ever(), name="killer")
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CLIENT_TIMEOUT_S)) as session,
                asyncio.TaskGroup() as group,
            ):
                for _ in range(self._clients):
                    group.create_task(self._be_a_client(session))
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)
            for replica in REPLICAS:
                self.fleet.signal(replica, signal.SIGCONT)
        self.weather.clear_up()
        for replica in REPLICAS:
            if self.fleet.is_dead(replica):
                await self._start(replica)
        self.seconds = time.monotonic() - begun_at

    async def violations(self) -> list[str]:
        """Everything that is not as it must be; empty is good."""
        fleet, ledger = self.fleet, self.ledger
        try:
            await fleet.settle(patience_s=90)
        except AssertionError as error:
            ledger.oddities.append(str(error))
        wrong = list(ledger.oddities)
        rows = await fleet.sql("SELECT name, state FROM backend WHERE deleted_at IS NULL")
        if {row["name"] for row in rows} != ledger.live:
            wrong.append(
                f"live: {sorted({row['name'] for row in rows} ^ ledger.live)[:5]} are not as clients were told"
            )
        states = Counter(row["state"] for row in await fleet.sql("SELECT state FROM operation"))
        if states.keys() - {"succeeded", "failed"}:
            wrong.append(f"sagas have not ended: {dict(states)}")

        async def is_all_healthy() -> bool:
            listed: list[Any] = []
            page = "/v1/storage_backends?limit=200"
            while True:
                found = (await fleet.api("GET", page)).body
                listed += found["items"]
                if not found["next_cursor"]:
                    break
                page = f"/v1/storage_backends?limit=200&cursor={found['next_cursor']}"
            return len(listed) == len(ledger.live) and all(
                item["host_summary"] == {"total": len(HOSTS), "healthy": len(HOSTS)} for item in listed
            )

        try:
            await until(is_all_healthy, "every backend to be healthy on every host")
        except AssertionError as error:
            wrong.append(str(error))
        wrong += await event_violations(fleet)
        return wrong + await backend_event_violations(fleet, added=ledger.added, removed=ledger.removed)

    def figures(self) -> dict[str, Any]:
        told, seen = self.ledger.counts, self.weather.counts
        return {
            "adds": len(self.ledger.added),
            "adds refused": len(self.ledger.refused),
            "deletes": len(self.ledger.removed),
            **{name: told[name] for name in ("kills", "pauses", "client retries")},
            **{name: seen[name] for name in ("commands", "repeated", "lost", "doubled", "delayed")},
            "stale refusals": seen["stale"],
            "seconds": round(self.seconds, 1),
        }

    # ---- the killer

    async def _start(self, replica: str) -> None:
        api = await self.fleet.child_manager(replica, command_ttl_s=COMMAND_TTL_S, abandoned_s=ABANDONED_S)
        self._urls[replica] = api.url
        self._token = api.token

    async def _kill_for_ever(self) -> None:
        """One after another is killed and born again, or stands still until others have its sagas."""
        while True:
            await asyncio.sleep(self.random.uniform(0.5, 2.5))
            replica = self.random.choice(REPLICAS)
            if self.random.random() < 0.4:
                self.ledger.counts["kills"] += 1
                self.fleet.signal(replica, signal.SIGKILL)
                await asyncio.sleep(self.random.uniform(0, 1.0))
                await self._start(replica)
            else:
                self.ledger.counts["pauses"] += 1
                self.fleet.signal(replica, signal.SIGSTOP)
                await asyncio.sleep(LEASE_S + self.random.uniform(0.5, 1.5))
                self.fleet.signal(replica, signal.SIGCONT)

    # ---- clients

    async def _be_a_client(self, session: aiohttp.ClientSession) -> None:
        while self._operations > 0:
            self._operations -= 1
            if self.ledger.live and self.random.random() < 0.35:
                name = self.random.choice(sorted(self.ledger.live))
                self.ledger.live.discard(name)  # nobody else's to remove now
                await self._remove(session, name)
            else:
                await self._add(session, new_id()[-12:])

    async def _add(self, session: aiohttp.ClientSession, name: str) -> None:
        is_doomed = self.random.random() < 1 / 3
        body: dict[str, Any] = {"name": name, "kind": "nfs", "config": {"server": "nas", "export": f"/tank/{name}"}}
        if self.random.random() < 0.5:
            credentials = {"username": "svc", "password": "right"}
            body = {"name": name, "kind": "smb", "config": {"server": "nas", "share": name}, "credentials": credentials}
        if is_doomed:
            body["config"]["server"] = SHUT_OUT[1]
        keys = [new_id()]
        async for status, answer in self._ask(session, "POST", "/v1/storage_backends", body, keys):
            code = answer.get("code")
            if status == 202:
                status, code = await self._outcome(session, answer["operation"])
                if status >= 500:
                    keys.append(new_id())  # the old key's answer is that 202 for good
            if status == 201:
                self.ledger.added.add(name)
                self.ledger.live.add(name)
                if is_doomed:
                    # A replica that had just come up did not know the host that would have refused.
                    self.ledger.live.discard(name)
                    self.ledger.counts["slipped through"] += 1
                    await self._remove(session, name)
                return
            if status == 422:
                self.ledger.refused.add(name)
                if not is_doomed:
                    self.ledger.counts["refused for the weather"] += 1
                return
            if status < 500 and status != 429 and code != "wrong_state":
                self.ledger.oddities.append(f"add of {name}: {status} {answer}")
                return

    async def _remove(self, session: aiohttp.ClientSession, name: str) -> None:
        absences = 0
        async for status, answer in self._ask(session, "DELETE", f"/v1/storage_backends/{name}", None, []):
            absences += status == 404
            # A replica that was paused may not know it yet, so once is not enough.
            if status == 204 or absences == 3:
                self.ledger.removed.add(name)
                return
            if status < 500 and status not in (202, 404, 429) and answer.get("code") != "wrong_state":
                self.ledger.oddities.append(f"removal of {name}: {status} {answer}")
                return

    async def _outcome(self, session: aiohttp.ClientSession, operation: str) -> tuple[int, str]:
        """(the status that the request would have had, the problem's code) of an operation, once it has ended."""
        async for status, answer in self._ask(session, "GET", operation, None, []):
            if status != 200 or answer["state"] in ("running", "undoing"):
                continue
            if answer["state"] == "succeeded":
                return 201, ""
            code = answer["error"]["code"]
            return (422 if code in ("probe_failed", "credentials_rejected") else 500), code
        return 500, "no answer"

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, path: str, body: Any, keys: list[str]
    ) -> AsyncIterator[tuple[int, Any]]:
        """One answer after another, of any replica, with growing pauses, until the caller has heard enough.

        keys: the last is the Idempotency-Key of the next request.
        """
        deadline = time.monotonic() + _CLIENT_PATIENCE_S
        for attempt in range(1000):
            if attempt:
                self.ledger.counts["client retries"] += 1
                await asyncio.sleep(self.random.uniform(0, min(2.0, 0.1 * 2**attempt)))
            headers = {"Authorization": f"Bearer {self._token}"} | ({"Idempotency-Key": keys[-1]} if keys else {})
            url = self._urls[self.random.choice(REPLICAS)]
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with session.request(method, url + path, json=body, headers=headers) as response:
                    text = await response.text()
                    yield response.status, json.loads(text) if text else {}
            if time.monotonic() > deadline:
                self.ledger.oddities.append(f"{method} {path} got no final answer in {_CLIENT_PATIENCE_S:.0f} s")
                return


async def weather_a_storm(fleet: Fleet, *, operations: int, clients: int, seed: int) -> tuple[Storm, list[str]]:
    storm = Storm(fleet, operations=operations, clients=clients, seed=seed)
    await storm.blow()
    wrong = await storm.violations()
    print(storm.figures(), dict(storm.ledger.counts), flush=True)
    return storm, wrong


async def main(operations: int, clients: int, seed: int, server: Postgres, folder: Path) -> None:
    admin = await asyncpg.connect(server.url())
    await admin.execute('CREATE DATABASE "storm"')
    await admin.close()
    zygote = start_zygote()
    async with fleet(folder, server.url("storm"), zygote) as made:
        _, wrong = await weather_a_storm(made, operations=operations, clients=clients, seed=seed)
    for line in wrong:
        print("violation:", line)
    print(f"{len(wrong)} violations (seed {seed})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A storm over a fleet, on servers of its own.")
    parser.add_argument("--adds", type=int, default=1000, help="adds and removals in all")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--keep", action="store_true", help="leave the logs")
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="stowage-storm-"))
    home.chmod(0o711)
    (home / "postgres").mkdir(mode=0o700)
    database = Postgres(
        home / "postgres",
        password_file=home / "password",
        log=home / "postgres.log",
        identity=identity.choose(home / "postgres", [postgres.binaries() / "postgres"]),
        settings={"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"},
    )
    database.start()
    try:
        (home / "fleet").mkdir()
        set_up_logging({"process": "agents"}, stream=(home / "fleet" / "agents.log").open("a"))
        asyncio.run(main(given.adds, given.clients, given.seed, database, home / "fleet"))
    finally:
        database.stop()
        if given.keep:
            print("logs:", home)
        else:
            shutil.rmtree(home, ignore_errors=True)
