"""A server for the test, a server for the module, and buses that end with the test."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from schemas import subjects
from schemas.bus import Bus
from tests.bus.nats_server import Agent, NatsServer

#: Makes a bus for a creds file; what else is given goes to Bus.
MakeBus = Callable[..., Bus]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that the test may stop, kill and start again."""
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server for tests that do it no harm."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def make_bus() -> AsyncIterator[MakeBus]:
    """Buses, not started; closed when the test ends."""
    made: list[Bus] = []

    def make(
        url: str,
        creds_file: Path,
        *,
        inbox_prefix: str = subjects.manager_inbox("test"),
        fail_fast: bool = True,
        ping_interval_s: float = 15.0,
        echo_interval_s: float = 30.0,
        backoff_cap_s: float = 0.3,
        tls_ca: Path | None = None,
    ) -> Bus:
        bus = Bus(
            servers=[url],
            creds_file=creds_file,
            name=creds_file.stem,
            inbox_prefix=inbox_prefix,
            fail_fast=fail_fast,
            ping_interval_s=ping_interval_s,
            echo_interval_s=echo_interval_s,
            backoff_cap_s=backoff_cap_s,
            tls_ca=tls_ca,
        )
        made.append(bus)
        return bus

    yield make
    for bus in made:
        await bus.close()


def agent_bus(make_bus: MakeBus, url: str, agent: Agent, **options: float) -> Bus:
    return make_bus(url, agent.creds_file, inbox_prefix=subjects.agent_inbox(agent.host_id), fail_fast=False, **options)


async def until(condition: Callable[[], bool], *, timeout_s: float = 5.0) -> float:
    """Seconds until the condition held. Fails the test when it doesn't in time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            pytest.fail(f"not within {timeout_s} s")
        await asyncio.sleep(0.005)
    return time.monotonic() - began
