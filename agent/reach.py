"""Whether a server's name resolves and its port answers from this host, asked before any mount."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Sequence

from agent.drivers.base import Commands
from agent.errors import AgentFault
from schemas.agent_rpc import Check
from schemas.faults import Fault, FaultCode, fault

#: Seconds, for each of the two questions.
REACH_TIMEOUT_S = 5.0
TOOL_TIMEOUT_S = 5.0


def bare_host(server: str) -> str:
    """The server without the brackets that an IPv6 address may come in."""
    return server[1:-1] if server.startswith("[") and server.endswith("]") else server


def is_ipv6(server: str) -> bool:
    """Whether it is a literal IPv6 address, with or without brackets and zone."""
    try:
        return ipaddress.ip_address(bare_host(server).partition("%")[0]).version == 6
    except ValueError:
        return False


def failed_check(name: str, what: Fault) -> Check:
    """The check that met this fault."""
    return Check(name=name, is_ok=False, code=what.code, detail=what.detail, remedy=what.remedy)


async def tool_check(commands: Commands, argv: Sequence[str]) -> Check:
    """Whether the tool can be started; argv asks it for its version."""
    try:
        await commands.run(argv, timeout_s=TOOL_TIMEOUT_S)
    except AgentFault as error:
        return failed_check(f"tool {argv[0]}", error.fault)
    return Check(name=f"tool {argv[0]}", is_ok=True)


async def server_checks(server: str, port: int) -> tuple[Check, ...]:
    """Two checks, name and port; the second only if the first is passed."""
    host = bare_host(server)
    try:
        addresses = await addresses_of(host)
    except AgentFault as error:
        return (failed_check("name", error.fault),)
    name = Check(name="name", is_ok=True, detail=f"{host} is {addresses[0]}")
    try:
        async with asyncio.timeout(REACH_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return name, failed_check("port", fault(FaultCode.SERVER_UNREACHABLE, f"{host} port {port} does not answer"))
    writer.close()
    return name, Check(name="port", is_ok=True, detail=f"port {port} answers")


async def addresses_of(host: str) -> tuple[str, ...]:
    """The host's addresses, normalized, best first; one for an address. Raises AgentFault name_not_resolved."""
    with contextlib.suppress(ValueError):
        # Not by the resolver: its few threads may all be waiting for a dead name server.
        return (str(ipaddress.ip_address(host)),)
    try:
        async with asyncio.timeout(REACH_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError) as error:
        raise AgentFault.of(
            FaultCode.NAME_NOT_RESOLVED, f"{host} does not resolve on this host", is_retryable=True
        ) from error
    return tuple(dict.fromkeys(normalized(str(row[4][0])) for row in found))


def normalized(host: str) -> str:
    """An address in its one canonical text; whatever is none as it is."""
    try:
        return str(ipaddress.ip_address(bare_host(host)))
    except ValueError:
        return host
