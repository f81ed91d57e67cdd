"""Heartbeats and the renewal of the bus identity."""

import asyncio
import base64
import json
import math
from pathlib import Path

import msgspec
import pytest

from agent.uplink import Renewal, beat_for_ever, claims_of
from schemas import nkey
from schemas.agent_rpc import Beat, RenewReply
from schemas.bus import BusDown, NoResponders
from schemas.bus_client import Identity
from tests.agent.waiting import until

SEED = nkey.new_seed(nkey.Role.USER)


def jwt(*, iat: int = 1000, exp: int = 2000, seed: str = SEED) -> str:
    claims = json.dumps({"sub": nkey.public_key(seed), "iat": iat, "exp": exp, "nats": {}}).encode()
    return f"head.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.signature"


class Manager:
    def __init__(self, answer: bytes | Exception) -> None:
        self.answer = answer
        self.calls = 0

    async def ask(self) -> bytes:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def renewal(manager: Manager, creds_file: Path, now: float, user_jwt: str) -> Renewal:
    return Renewal(ask=manager.ask, creds_file=creds_file, user_jwt=user_jwt, seed=SEED, clock=lambda: now)


async def test_beat_lost_ones_are_counted_and_not_sent_later() -> None:
    sent: list[Beat] = []
    attempts = 0

    async def publish(payload: bytes) -> None:
        nonlocal attempts
        attempts += 1
        if attempts in (1, 2):
            raise BusDown("away")
        sent.append(msgspec.json.decode(payload, type=Beat))

    task = asyncio.create_task(beat_for_ever(publish, lambda: 2, interval_s=0.01))
    await until(lambda: len(sent) >= 2)
    task.cancel()
    assert [(beat.sequence, beat.hung_workers) for beat in sent[:2]] == [(3, 2), (4, 2)]


@pytest.mark.parametrize(("now", "exp", "due_in_s"), [(1100, 2000, 400), (1600, 2000, -100), (1600, 0, math.inf)])
def test_due_is_half_life(tmp_path: Path, now: float, exp: int, due_in_s: float) -> None:
    assert renewal(Manager(b""), tmp_path / "c", now, jwt(exp=exp)).due_in_s() == due_in_s


async def test_renew_writes_the_new_identity_and_plans_the_next(tmp_path: Path) -> None:
    creds = tmp_path / "bus.creds"
    fresh = jwt(iat=1600, exp=2600)
    manager = Manager(msgspec.json.encode(RenewReply(user_jwt=fresh)))
    renewing = renewal(manager, creds, 1600, jwt())
    assert await renewing.renew()
    assert Identity.read(creds).jwt().decode() == fresh
    assert creds.stat().st_mode & 0o777 == 0o600
    assert renewing.due_in_s() == 500


@pytest.mark.parametrize(
    "answer",
    [
        NoResponders("revoked"),
        b"garbage",
        msgspec.json.encode(RenewReply(user_jwt="x.y.z")),
        msgspec.json.encode(RenewReply(user_jwt=jwt(seed=nkey.new_seed(nkey.Role.USER)))),
    ],
)
async def test_renew_that_fails_or_brings_anothers_identity_changes_nothing(
    tmp_path: Path, answer: bytes | Exception
) -> None:
    creds = tmp_path / "bus.creds"
    assert not await renewal(Manager(answer), creds, 1600, jwt()).renew()
    assert not creds.exists()


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "a.!!.c", "a." + "e30" + ".c"])
def test_claims_of_what_is_no_jwt_do_not_quote_it(token: str) -> None:
    with pytest.raises(ValueError, match=r"^not a NATS user JWT$"):
        claims_of(token)


async def test_run_asks_only_when_due(tmp_path: Path) -> None:
    early = Manager(NoResponders("away"))
    late = Manager(NoResponders("away"))
    tasks = [
        asyncio.create_task(renewal(early, tmp_path / "a", 1100, jwt()).run()),
        asyncio.create_task(renewal(late, tmp_path / "b", 1600, jwt()).run()),
    ]
    await until(lambda: late.calls == 1)
    for task in tasks:
        task.cancel()
    assert early.calls == 0
