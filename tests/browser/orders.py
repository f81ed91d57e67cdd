"""What a test may tell the stack: to the pretend estate, to its hosts, to the cable between browser and manager."""

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from manager import changes
from schemas.faults import FaultCode
from tests.browser.cleaning import clean
from tests.browser.relay import Relay
from tests.fleet.fleet import Fleet, until
from tests.fleet.world import Gate, World

HOSTS = ("hv1", "hv2", "hv3")


class Orders:
    """Every public method is an order. Its arguments and its answer are JSON."""

    def __init__(self, fleet: Fleet, relay: Relay) -> None:
        self._fleet = fleet
        self._relay = relay
        self._gates: dict[str, list[Gate]] = {}
        self._held = contextlib.ExitStack()
        self._reading_s = changes.READING_S
        self._stopped: set[str] = set()
        self._joined: set[str] = set()

    # ---- storage

    async def fail(self, host: str, verb: str, code: str) -> None:
        """From now on the verb fails on the host with that fault."""
        self._fleet.world.fail(host, verb, FaultCode(code))

    async def unfail(self, host: str, verb: str) -> None:
        self._fleet.world.script.pop((host, verb), None)

    async def ail(self, host: str, backend_id: str, code: str, detail: str) -> None:
        """That backend has that fault on that host, whatever is done about it."""
        self._fleet.world.ill[host, backend_id] = FaultCode(code), detail

    async def passwords(self, accepted: list[str]) -> None:
        """Servers take these alone."""
        self._fleet.world.passwords = set(accepted)

    async def blank(self, targets: list[str]) -> None:
        """The LUNs of these targets are without a VG."""
        self._fleet.world.blank.update(targets)

    async def occupy(self, targets: list[str]) -> None:
        """The LUNs of these targets hold what is not ours."""
        self._fleet.world.foreign.update(targets)

    async def close(self, host: str, server: str) -> None:
        """The server lets the host in for nothing."""
        self._fleet.world.closed.add((host, server))

    async def reopen(self, host: str, server: str) -> None:
        self._fleet.world.closed.discard((host, server))

    async def use(self, host: str, is_used: bool | None) -> None:
        """Whether the host uses the LUN for something else (null: it cannot tell)."""
        self._fleet.world.using[host] = is_used

    async def see(self, host: str, wwid: str) -> None:
        """The host sees that LUN in place of the one that the others see."""
        self._fleet.world.wwids[host] = wwid

    async def used_bytes(self, used_bytes: int, backend_id: str | None = None) -> None:
        """Of every backend, or of that one, from the next probe on."""
        if backend_id is None:
            self._fleet.world.used_bytes = used_bytes
        else:
            self._fleet.world.used_bytes_of[backend_id] = used_bytes

    async def take(self, host: str, backend_id: str, latency_ms: float) -> None:
        """How long a probe of that backend takes on that host, from the next on."""
        self._fleet.world.latencies[host, backend_id] = latency_ms

    async def clone_at_once(self, is_cloning: bool) -> None:
        """Whether storage makes a volume with its origin's content itself, or hosts copy."""
        self._fleet.world.is_cloning = is_cloning

    async def open_volume(self, host: str, locator: str, is_open: bool) -> None:
        """Whether a process of the host has the volume open."""
        (self._fleet.world.in_use[host].add if is_open else self._fleet.world.in_use[host].discard)(locator)

    async def mounts(self, host: str) -> dict[str, Any]:
        """backend id -> {config, password} of everything that is mounted on the host."""
        return self._fleet.world.mounts(host)

    async def contents(self, backend_id: str) -> dict[str, int]:
        """locator -> size in bytes of everything that lies there."""
        return {locator: len(content) for locator, content in self._fleet.world.contents(backend_id).items()}

    # ---- work that waits

    async def hold(self, verb: str, hosts: Sequence[str] = HOSTS) -> None:
        """From now on the verb about volumes waits on these hosts, until `let_go`."""
        self._gates[verb] = [self._held.enter_context(self._fleet.world.gate(host, verb)) for host in hosts]

    async def reached(self, verb: str) -> None:
        """Some host has come to where it is held."""

        async def is_there() -> bool:
            return any(gate.reached.is_set() for gate in self._gates[verb])

        await until(is_there, f"a host to come to {verb}")

    async def let_go(self) -> None:
        """Whatever was held goes on."""
        self._gates.clear()
        self._held.close()

    # ---- hosts

    async def stop_agent(self, host: str) -> None:
        # Noted first, here and in `join`: who gives the order may not wait for its end, and the host is to be as before all the same.
        self._stopped.add(host)
        await self._fleet.stop_agent(host)

    async def start_agent(self, host: str) -> None:
        await self._fleet.agent(host)
        self._stopped.discard(host)

    async def join(self, host: str) -> None:
        """A host more, which goes when the test ends. The stack's own three are not to be revoked."""
        self._joined.add(host)
        await self._fleet.agent(host)

    # ---- the manager

    async def cut(self) -> None:
        """No browser reaches the manager; the test's own requests do."""
        await self._relay.cut()

    async def mend(self) -> None:
        await self._relay.mend()

    async def streams(self) -> dict[str, int]:
        """Connections that read the event stream now, and how many have begun to since the start."""
        return {"now": self._relay.streams, "begun": self._relay.streams_begun}

    async def begin_streams_as_old(self) -> None:
        """Streams that begin from now on are told of changes as those are that began long ago: not what came back to what it was."""
        changes.READING_S = 0.0

    async def sql(self, query: str, args: Sequence[Any] = ()) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._fleet.sql(query, *args)]

    async def settle(self) -> None:
        await self._fleet.settle()

    # ---- the end of a test

    async def clean(self) -> None:
        """The estate does what it did at the start, and nothing that anybody made through the API is left.

        Each part is done whatever became of the others, for the next tests have the same estate.
        """
        await self.let_go()
        changes.READING_S = self._reading_s
        _forget(self._fleet.world)
        failures: list[str] = []
        parts: list[Callable[[], Awaitable[None]]] = [
            self._relay.mend,
            *(partial(self._have_back, host) for host in sorted(self._stopped - self._joined)),
            *(partial(self._let_leave, host) for host in sorted(self._joined)),
            partial(clean, self._fleet, keep_hosts=HOSTS),
        ]
        for part in parts:
            try:
                await part()
            except Exception as error:  # noqa: BLE001
                failures.append(f"{type(error).__name__}: {error}")
        assert not failures, "; ".join(failures)

    async def _have_back(self, host: str) -> None:
        """Once: where it cannot be had, the test that stopped it fails, and those that need it."""
        self._stopped.discard(host)
        await self._fleet.agent(host)

    async def _let_leave(self, host: str) -> None:
        """As far as it came."""
        self._joined.discard(host)
        self._stopped.discard(host)
        with contextlib.suppress(KeyError):
            await self._fleet.stop_agent(host)
        self._fleet.states.pop(host, None)


def _forget(world: World) -> None:
    """All but where it lies. What hosts have open goes out of the very sets that drivers hold."""
    fresh = World(world.folder)
    for users in world.in_use.values():
        users.clear()
    for field in dataclasses.fields(World):
        if field.name != "in_use":
            setattr(world, field.name, getattr(fresh, field.name))
