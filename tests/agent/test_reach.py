"""Name, port and tool are asked, and each wrong one is named."""

import asyncio

import pytest

from agent.errors import AgentFault
from agent.reach import addresses_of, bare_host, is_ipv6, server_checks, tool_check
from schemas.faults import FaultCode
from tests.agent.recorded_commands import RecordedCommands, Step


async def test_server_checks_of_a_port_that_answers_are_ok_and_of_a_closed_one_are_not() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        assert [check.is_ok for check in await server_checks("127.0.0.1", port)] == [True, True]
    checks = await server_checks("127.0.0.1", port)
    assert [check.is_ok for check in checks] == [True, False]
    assert checks[1].remedy


async def test_server_checks_of_a_name_that_does_not_resolve_stop_there() -> None:
    (check,) = await server_checks("nosuchhost.invalid", 445)
    assert (check.name, check.is_ok) == ("name", False) and check.remedy


async def test_tool_check_says_how_to_install_what_is_missing() -> None:
    missing = AgentFault.of(FaultCode.TOOL_MISSING, "mount.nfs cannot be started on this host", "Install nfs-common")
    check = await tool_check(RecordedCommands(Step(("mount.nfs", "-V"), fault=missing)), ["mount.nfs", "-V"])
    assert (check.is_ok, check.code, check.remedy) == (False, FaultCode.TOOL_MISSING, "Install nfs-common")
    assert (await tool_check(RecordedCommands(Step(("mount.nfs", "-V"))), ["mount.nfs", "-V"])).is_ok


@pytest.mark.parametrize(
    ("server", "bare", "is_six"),
    [
        ("nas", "nas", False),
        ("10.0.0.5", "10.0.0.5", False),
        ("[fd00::5]", "fd00::5", True),
        ("fe80::1%eth0", "fe80::1%eth0", True),
    ],
)
def test_servers_address_family_is_seen_through_brackets_and_zone(server: str, bare: str, is_six: bool) -> None:
    assert (bare_host(server), is_ipv6(server)) == (bare, is_six)


async def test_an_address_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise AssertionError("the resolver was asked")

    monkeypatch.setattr("asyncio.BaseEventLoop.getaddrinfo", fail)

    assert await addresses_of("10.0.0.9") == ("10.0.0.9",)
    assert await addresses_of("fd00:0::9") == ("fd00::9",)
