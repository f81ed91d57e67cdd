"""Who may do what: an agent against everything of another host, each of the manager's users beyond its work."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from manager import bus_auth
from manager.event_stream import EventStream
from schemas import nkey, subjects
from schemas.bus import Message
from schemas.ids import HostId, new_id
from schemas.nkey import Role
from schemas.subjects import Uplink
from tests.bus.conftest import MakeBus, agent_bus, until
from tests.bus.nats_server import NatsServer, RawPeer, denials, pub

_STREAM = subjects.STREAM

#: What agent A may not publish; {b} is host B's id, {a} its own.
_FORBIDDEN_TO_PUBLISH = [
    "stowage.cmd.{b}.attach",
    "stowage.cmd.{a}.attach",
    "stowage.up.{b}.beat",
    "stowage.up.{b}.sync",
    "stowage.up.beat",
    "stowage.event.backend.created.x",
    "stowage.event.{a}.x",
    "_INBOX_a.{b}.x",
    "_INBOX_m.replica.x",
    "_INBOX_e.x",
    "_INBOX.x",
    "$JS.API.INFO",
    "$JS.API.STREAM.CREATE." + _STREAM,
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.DELETE." + _STREAM,
    "$JS.API.CONSUMER.CREATE." + _STREAM,
    "$JS.API.CONSUMER.CREATE." + _STREAM + ".c.stowage.event.>",
    "$JS.API.CONSUMER.MSG.NEXT." + _STREAM + ".c",
    "$JS.API.STREAM.MSG.GET." + _STREAM,
    "$JS.API.DIRECT.GET." + _STREAM,
    "$JS.ACK." + _STREAM + ".c.1.1.1.1.1",
    "$SYS.REQ.CLAIMS.UPDATE",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.USER.INFO",
    "$SRV.PING",
    "anything",
]

_FORBIDDEN_TO_HEAR = [
    "stowage.cmd.{b}.*",
    "stowage.cmd.{b}.attach",
    "stowage.cmd.*.*",
    "stowage.cmd.>",
    "stowage.up.{b}.beat",
    "stowage.up.{a}.beat",
    "stowage.up.>",
    "stowage.event.>",
    "stowage.event.backend.created.x",
    "stowage.>",
    "stowage.*.{b}.>",
    "_INBOX_a.{b}.>",
    "_INBOX_a.*.>",
    "_INBOX_a.>",
    "_INBOX_m.>",
    "_INBOX_e.>",
    "_INBOX.>",
    "$JS.>",
    "$SYS.>",
    "$SRV.>",
    ">",
    "*",
    "*.*.{b}.*",
]


@pytest.mark.parametrize("subject", _FORBIDDEN_TO_PUBLISH)
async def test_agent_publishing_beyond_its_own_denied(shared_server: NatsServer, subject: str) -> None:
    a, b = shared_server.enrol(), shared_server.enrol()
    peer = await RawPeer.connect(shared_server.port, a.creds_file)
    lines = await peer.ask(pub(subject.format(a=a.host_id, b=b.host_id).encode()))
    assert len(denials(lines)) == 1, lines
    await peer.close()


@pytest.mark.parametrize("queue", ["", "managers"], ids=["plain", "queue group"])
@pytest.mark.parametrize("subject", _FORBIDDEN_TO_HEAR)
async def test_agent_listening_beyond_its_own_denied(shared_server: NatsServer, subject: str, queue: str) -> None:
    a, b = shared_server.enrol(), shared_server.enrol()
    peer = await RawPeer.connect(shared_server.port, a.creds_file)
    lines = await peer.ask(f"SUB {subject.format(a=a.host_id, b=b.host_id)} {queue} 7\r\n".encode())
    assert len(denials(lines)) == 1, lines
    await peer.close()


async def test_agent_within_its_own_allowed(shared_server: NatsServer) -> None:
    a = shared_server.enrol()
    peer = await RawPeer.connect(shared_server.port, a.creds_file)
    own = f"_INBOX_a.{a.host_id}.x"
    lines = await peer.ask(
        f"SUB {subjects.commands_of(a.host_id)} 1\r\nSUB {own} 2\r\n".encode(),
        *(pub(subjects.uplink(a.host_id, kind).encode()) for kind in Uplink),
        pub(own.encode()),
    )
    assert denials(lines) == []
    assert any(line.startswith(f"MSG {own} 2".encode()) for line in lines)
    await peer.close()


async def test_second_answer_to_one_command_is_dropped(shared_server: NatsServer, make_bus: MakeBus) -> None:
    a = shared_server.enrol()
    manager = make_bus(shared_server.url, shared_server.creds.commands)
    await manager.start(5)
    peer = await RawPeer.connect(shared_server.port, a.creds_file)
    await peer.ask(f"SUB {subjects.commands_of(a.host_id)} 1\r\n".encode())
    request = asyncio.create_task(manager.request(subjects.command(a.host_id, "probe"), b"", timeout_s=2))
    inbox = (await peer.read_line()).split(b" ")[3]
    await peer.read_line()
    assert denials(await peer.ask(pub(inbox, b"first"))) == []
    assert await request == b"first"
    assert denials(await peer.ask(pub(inbox, b"second"))) == []
    request = asyncio.create_task(manager.request(subjects.command(a.host_id, "probe"), b"", timeout_s=5))
    inbox = (await peer.read_line()).split(b" ")[3]
    await peer.read_line()
    await peer.ask(pub(inbox, b"third"))
    assert await request == b"third"
    await peer.close()


#: Where agent A would like to answer; {b} is host B's id.
_FORBIDDEN_TO_ANSWER = [
    "stowage.cmd.{b}.attach",
    "stowage.up.{b}.beat",
    "stowage.event.backend.created.x",
    "_INBOX_a.{b}.x",
    "_INBOX_m.r.x",
    "_INBOX_m.r.h.{b}.x",
    "_INBOX_m.r.h.{a}.x.y",
    "$JS.API.STREAM.DELETE." + _STREAM,
    "$SYS.REQ.CLAIMS.UPDATE",
]


@pytest.mark.parametrize("place", _FORBIDDEN_TO_ANSWER)
async def test_agent_that_sends_itself_a_message_gains_no_reply_subject(shared_server: NatsServer, place: str) -> None:
    """With the server's `allow_responses` it would: each message received grants its reply subject, whoever sent it."""
    a, b = shared_server.enrol(), shared_server.enrol()
    peer = await RawPeer.connect(shared_server.port, a.creds_file)
    own, wanted = f"_INBOX_a.{a.host_id}.x", place.format(a=a.host_id, b=b.host_id)
    lines = await peer.ask(f"SUB {own} 1\r\nPUB {own} {wanted} 0\r\n\r\n".encode())
    assert any(line.startswith(f"MSG {own} 1 {wanted}".encode()) for line in lines), lines
    assert len(denials(await peer.ask(pub(wanted.encode())))) == 1
    await peer.close()


async def test_agent_message_over_its_payload_limit_denied(shared_server: NatsServer) -> None:
    a = shared_server.enrol()
    peer = await RawPeer.connect(shared_server.port, a.creds_file)
    await peer.send(f"PUB {subjects.uplink(a.host_id, Uplink.STATUS)} {256 * 1024 + 1}\r\n".encode())
    assert b"Maximum Payload Violation" in await peer.read_line()
    await peer.close()


async def test_uplink_reply_subject_of_another_host_is_refused_by_us_and_denied_by_the_server(
    shared_server: NatsServer, make_bus: MakeBus
) -> None:
    """The server lets A name any reply subject; answering it blindly would send B a command (BUS.md 3.1)."""
    a, b = shared_server.enrol(), shared_server.enrol()
    victim, uplink = agent_bus(make_bus, shared_server.url, b), make_bus(shared_server.url, shared_server.creds.uplink)
    commands: list[Message] = []
    seen: list[Message] = []

    async def obey(message: Message) -> None:
        commands.append(message)

    async def answer_blindly(message: Message) -> None:
        seen.append(message)
        await uplink.publish(message.reply, b"yes")

    victim.subscribe(subjects.commands_of(b.host_id), obey)
    uplink.subscribe(subjects.ALL_UPLINKS, answer_blindly)
    await victim.start(5)
    await uplink.start(5)
    peer = await RawPeer.connect(shared_server.port, a.creds_file)
    forged = subjects.command(b.host_id, "release")
    await peer.ask(pub(subjects.uplink(a.host_id, Uplink.SYNC).encode(), reply=forged.encode()))
    await until(lambda: len(seen) == 1)
    assert seen[0].reply == forged and not subjects.is_own_inbox(seen[0].reply, a.host_id)
    await uplink.flush()
    await victim.flush()
    assert commands == []
    await peer.close()


@pytest.mark.parametrize(
    "reply",
    [
        "stowage.cmd.{b}.x",
        "_INBOX_a.{b}.x",
        "_INBOX_a.{a}",
        "_INBOX_a.{a}x.y",
        "_INBOX_m.x",
        "_INBOX_a.{a}.*",
        "_INBOX_a.{a}.>",
        "",
    ],
)
def test_is_own_inbox_foreign_reply_false(reply: str) -> None:
    a, b = new_id(), new_id()
    assert not subjects.is_own_inbox(reply.format(a=a, b=b), HostId(a))
    assert subjects.is_own_inbox(f"_INBOX_a.{a}.x.y", HostId(a))


_Creds = Callable[[bus_auth.CredsFiles], Path]
_ALLOWED_AND_NOT: list[tuple[str, list[str], list[str], list[str]]] = [
    (
        "commands",
        ["stowage.cmd.x.probe"],
        ["stowage.up.x.beat", "stowage.event.a.b", "_INBOX_a.x.y", "$JS.API.INFO", "$SYS.REQ.CLAIMS.UPDATE"],
        ["stowage.cmd.>", "stowage.up.>", "stowage.event.>", "_INBOX_a.>", "_INBOX_e.>", ">"],
    ),
    (
        "uplink",
        ["_INBOX_a.x.y"],
        ["stowage.cmd.x.probe", "stowage.up.x.beat", "stowage.event.a.b", "$JS.API.INFO", "$SYS.REQ.CLAIMS.UPDATE"],
        ["stowage.cmd.>", "stowage.event.>", "_INBOX_a.>", "_INBOX_e.>", ">"],
    ),
    (
        "relay",
        ["stowage.event.a.b", "$JS.API.STREAM.INFO." + _STREAM, "$JS.API.STREAM.MSG.GET." + _STREAM],
        [
            "stowage.cmd.x.probe",
            "stowage.up.x.beat",
            "_INBOX_a.x.y",
            "$JS.API.INFO",
            "$JS.API.STREAM.CREATE.OTHER",
            "$JS.API.STREAM.INFO.OTHER",
            "$JS.API.STREAM.MSG.GET.OTHER",
            "$JS.API.DIRECT.GET." + _STREAM,
            "$JS.API.STREAM.NAMES",
            "$JS.API.STREAM.DELETE." + _STREAM,
            "$JS.API.STREAM.PURGE." + _STREAM,
            "$JS.API.STREAM.MSG.DELETE." + _STREAM,
            "$JS.API.CONSUMER.CREATE." + _STREAM,
            "$SYS.REQ.CLAIMS.UPDATE",
        ],
        ["stowage.event.>", "stowage.cmd.>", "stowage.up.>", "_INBOX_a.>", ">"],
    ),
    (
        "system",
        [],
        [
            "$SYS.REQ.CLAIMS.DELETE",
            "$SYS.REQ.CLAIMS.LIST",
            "$SYS.REQ.SERVER.PING",
            "stowage.cmd.x.probe",
            "$JS.API.INFO",
        ],
        ["$SYS.>", "$SYS.ACCOUNT.>", "stowage.>", ">"],
    ),
    (
        "auditor",
        ["$JS.ACK." + _STREAM + ".c.1.1.1.1.1"],
        [
            "stowage.cmd.x.probe",
            "stowage.up.x.beat",
            "stowage.event.a.b",
            "_INBOX_a.x.y",
            "_INBOX_m.x.y",
            "$JS.API.STREAM.CREATE." + _STREAM,
            "$JS.API.STREAM.DELETE." + _STREAM,
            "$JS.API.CONSUMER.CREATE.OTHER.c",
            "$JS.API.CONSUMER.DELETE." + _STREAM + ".c",
            "$SYS.REQ.CLAIMS.UPDATE",
        ],
        ["stowage.event.>", "stowage.cmd.>", "stowage.up.>", "_INBOX_a.>", "_INBOX_m.>", ">"],
    ),
]


@pytest.mark.parametrize(
    ("user", "may", "may_not", "may_not_hear"), _ALLOWED_AND_NOT, ids=[c[0] for c in _ALLOWED_AND_NOT]
)
async def test_manager_user_beyond_its_work_denied(
    shared_server: NatsServer, user: str, may: list[str], may_not: list[str], may_not_hear: list[str]
) -> None:
    peer = await RawPeer.connect(shared_server.port, shared_server.creds_path(user))
    for subject in may:
        assert denials(await peer.ask(pub(subject.encode()))) == [], subject
    for subject in may_not:
        assert len(denials(await peer.ask(pub(subject.encode())))) == 1, subject
    for number, subject in enumerate(may_not_hear):
        assert len(denials(await peer.ask(f"SUB {subject} {number}\r\n".encode()))) == 1, subject
        assert len(denials(await peer.ask(f"SUB {subject} q {number}\r\n".encode()))) == 1, subject
    await peer.close()


async def test_auditor_durable_consumer_reads_events_and_acks(server: NatsServer, make_bus: MakeBus) -> None:
    """By hand what scripts' consumer does with nats-py: create, fetch, acknowledge."""
    relay = make_bus(server.url, server.creds.relay)
    await relay.start(5)
    await EventStream(relay).ensure()
    await EventStream(relay).publish_one("stowage.event.backend.created.x", b"an event", "1")
    config = {"stream_name": _STREAM, "config": {"durable_name": "audit", "name": "audit", "ack_policy": "explicit"}}
    peer = await RawPeer.connect(server.port, server.creds.auditor)
    create = f"$JS.API.CONSUMER.CREATE.{_STREAM}.audit".encode()
    await peer.send(b"SUB _INBOX_e.me.* 1\r\n", pub(create, msgspec.json.encode(config), b"_INBOX_e.me.1"))
    await peer.read_line()
    assert b'"error"' not in await peer.read_line()
    await peer.send(pub(f"$JS.API.CONSUMER.MSG.NEXT.{_STREAM}.audit".encode(), b"1", b"_INBOX_e.me.2"))
    ack_subject = (await _header_line(peer)).split(b" ")[3]
    assert ack_subject.startswith(f"$JS.ACK.{_STREAM}.audit".encode())
    assert denials(await peer.ask(pub(ack_subject, b"+ACK"))) == []
    await peer.close()


async def test_agent_signing_key_stolen_cannot_mint_wider_rights(shared_server: NatsServer) -> None:
    keys = shared_server.keys
    seed = nkey.new_seed(Role.USER)
    account = nkey.public_key(keys.account)
    wide = {"pub": {"allow": [">"]}, "sub": {"allow": [">"]}, "subs": -1, "data": -1, "payload": -1}
    for claims in (
        {"type": "user", "issuer_account": account, **wide},
        {"type": "user", "issuer_account": nkey.public_key(keys.system_account)},
        {"type": "user"},
    ):
        minted = bus_auth.sign_claims(keys.agent_signer, nkey.public_key(seed), claims, name=new_id())
        with pytest.raises(PermissionError):
            await RawPeer.connect_as(shared_server.port, minted, seed)


async def test_agent_signing_key_stolen_name_with_wildcard_hears_nothing_wider(shared_server: NatsServer) -> None:
    keys = shared_server.keys
    seed = nkey.new_seed(Role.USER)
    claims = {"type": "user", "issuer_account": nkey.public_key(keys.account)}
    minted = bus_auth.sign_claims(keys.agent_signer, nkey.public_key(seed), claims, name="*")
    try:
        peer = await RawPeer.connect_as(shared_server.port, minted, seed)
    except PermissionError:
        return
    # With the signing key one can pose as any host, so as all of them; it must not be more than that.
    assert len(denials(await peer.ask(b"SUB stowage.event.> 1\r\n"))) == 1
    assert len(denials(await peer.ask(b"SUB stowage.up.> 1\r\n"))) == 1
    await peer.close()


async def test_unknown_issuer_and_unsigned_identity_refused(shared_server: NatsServer) -> None:
    stranger, seed = nkey.new_seed(Role.ACCOUNT), nkey.new_seed(Role.USER)
    claims = {"type": "user", "issuer_account": nkey.public_key(shared_server.keys.account)}
    minted = bus_auth.sign_claims(stranger, nkey.public_key(seed), claims, name=new_id())
    good = shared_server.enrol()
    for user_jwt, key in ((minted, seed), (good.creds_file.read_text().splitlines()[1], seed)):
        with pytest.raises(PermissionError):
            await RawPeer.connect_as(shared_server.port, user_jwt, key)


@pytest.mark.parametrize("host_id", ["*", ">", "a.b", "", "hv1", "0192f0c4-7f7e-7000-8000-73746f77616!"])
def test_mint_agent_id_out_of_form_refused(shared_server: NatsServer, host_id: str) -> None:
    with pytest.raises(ValueError, match="UUID"):
        shared_server.auth.mint_agent(HostId(host_id), nkey.public_key(nkey.new_seed(Role.USER)))


def test_mint_agent_key_of_another_role_refused(shared_server: NatsServer) -> None:
    with pytest.raises(ValueError, match="user"):
        shared_server.auth.mint_agent(HostId(new_id()), nkey.public_key(nkey.new_seed(Role.ACCOUNT)))


async def _header_line(peer: RawPeer) -> bytes:
    """The next message line, past headers and bodies."""
    while True:
        line = await peer.read_line()
        if line.startswith((b"MSG ", b"HMSG ")):
            return line
