"""/v1/tokens: made, shown once, listed, revoked."""

import asyncio
import datetime as dt
import os
from pathlib import Path

import pytest

from manager.actor import SYSTEM, Role
from manager.errors import ConfigError, Refused
from manager.store import tokens as store
from manager.store.pool import Connection, Pool
from manager.tokens import Tokens
from schemas.ids import new_id
from schemas.requests import CreateToken
from tests.manager.api.conftest import Answer, Api, until


async def _create(tokens: Tokens, name: str, role: str = "operator", expires_at: dt.datetime | None = None) -> str:
    made = await tokens.create(CreateToken(name=name, role=role, expires_at=expires_at), SYSTEM)
    assert made.token is not None
    return made.token


def _id(token: str) -> str:
    return token.split("_")[1]


async def test_token_is_shown_once_and_kept_as_a_digest(api: Api) -> None:
    made = await api.call("POST", "/v1/tokens", {"name": "ci", "role": "viewer"}, role="admin")
    assert made.status == 201
    token, token_id = made.json["token"], made.json["id"]
    assert made.headers["Location"] == f"/v1/tokens/{token_id}"
    assert (await api.call("GET", "/v1/hosts", token=token)).status == 200
    shown = await api.call("GET", f"/v1/tokens/{token_id}", role="admin")
    listed = await api.call("GET", "/v1/tokens", role="admin")
    assert shown.json["created_by"] == "token:admin"
    assert token not in shown.body.decode() + listed.body.decode()
    assert "secret_hash" not in shown.json
    row = await api.pool.fetchval("SELECT api_token::text FROM api_token WHERE id = $1", token_id)
    assert token.split("_", 2)[2] not in row


async def test_token_ends_no_later_than_the_one_that_makes_it(api: Api) -> None:
    end = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(minutes=5)
    maker = await _create(api.tokens, "soon", "admin", end)

    async def make(name: str, **more: str | None) -> Answer:
        return await api.call("POST", "/v1/tokens", {"name": name, "role": "admin", **more}, token=maker)

    for name, more in (("absent", {}), ("null", {"expires_at": None}), ("same", {"expires_at": end.isoformat()})):
        made = await make(name, **more)
        assert (made.status, dt.datetime.fromisoformat(made.json["expires_at"])) == (201, end), name
    earlier = end - dt.timedelta(minutes=1)
    made = await make("earlier", expires_at=earlier.isoformat())
    assert dt.datetime.fromisoformat(made.json["expires_at"]) == earlier
    refused = await make("later", expires_at=(end + dt.timedelta(seconds=1)).isoformat())
    refused.problem(400, "invalid_field")
    assert refused.pointers() == ["/expires_at"]
    assert await api.pool.fetchval("SELECT count(*) FROM api_token WHERE name = 'later'") == 0


async def test_token_name_is_taken_until_it_is_revoked(api: Api) -> None:
    body = {"name": "ci", "role": "viewer"}
    made = await api.call("POST", "/v1/tokens", body, role="admin")
    taken = await api.call("POST", "/v1/tokens", body, role="admin")
    taken.problem(409, "name_taken")
    assert taken.pointers() == ["/name"]
    assert (await api.call("DELETE", f"/v1/tokens/{made.json['id']}", role="admin")).status == 204
    (await api.call("GET", "/v1/hosts", token=made.json["token"])).problem(401, "unauthorized")
    (await api.call("GET", f"/v1/tokens/{made.json['id']}", role="admin")).problem(404, "not_found")
    (await api.call("DELETE", f"/v1/tokens/{made.json['id']}", role="admin")).problem(404, "not_found")
    assert (await api.call("POST", "/v1/tokens", body, role="admin")).status == 201


async def test_token_list_pages(api: Api) -> None:
    first = (await api.call("GET", "/v1/tokens?limit=2", role="admin")).json
    second = (await api.call("GET", f"/v1/tokens?limit=2&cursor={first['next_cursor']}", role="admin")).json
    assert [t["name"] for t in first["items"] + second["items"]] == ["viewer", "operator", "admin"]
    assert second["next_cursor"] is None


async def test_last_admin_token_cannot_be_revoked(api: Api) -> None:
    admin = f"/v1/tokens/{_id(api.by_role['admin'])}"
    (await api.call("DELETE", admin, role="admin")).problem(409, "wrong_state")
    await api.token("second", "admin")
    assert (await api.call("DELETE", admin, role="admin")).status == 204


async def test_last_admin_token_beside_one_that_expires_cannot_be_revoked(pool: Pool) -> None:
    tokens = Tokens(pool)
    last = _id(await _create(tokens, "last", "admin"))
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    passing = _id(await _create(tokens, "passing", "admin", expires_at=soon))
    with pytest.raises(Refused, match="without an expiry"):
        await tokens.revoke(last, SYSTEM)
    await tokens.revoke(passing, SYSTEM)


async def test_expired_admin_token_beside_none_that_stays_can_be_revoked(pool: Pool) -> None:
    tokens = Tokens(pool)
    gone = _id(await _create(tokens, "gone", "admin", expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)))
    await pool.execute("UPDATE api_token SET expires_at = now() - interval '1 minute'")
    await tokens.revoke(gone, SYSTEM)


async def test_two_admins_that_revoke_each_other_leave_one(pool: Pool) -> None:
    tokens = Tokens(pool)
    ids = [_id(await _create(tokens, name, "admin")) for name in ("a", "b")]
    results = await asyncio.gather(*(tokens.revoke(i, SYSTEM) for i in ids), return_exceptions=True)
    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, Refused) for result in results) == 1


async def test_expired_token_is_refused_even_when_remembered(pool: Pool) -> None:
    tokens = Tokens(pool)
    expires_at = dt.datetime.now(dt.UTC) + dt.timedelta(milliseconds=300)
    token = await _create(tokens, "short", expires_at=expires_at)
    assert await tokens.authenticate(token, "r") is not None
    await until(lambda: dt.datetime.now(dt.UTC) > expires_at)
    assert await tokens.authenticate(token, "r") is None


async def test_revocation_elsewhere_is_seen_once_the_token_is_forgotten(pool: Pool) -> None:
    """What another replica revokes reaches this one as the notification `token:<id>`."""
    here, there = Tokens(pool), Tokens(pool)
    token = await _create(here, "t")
    actor = await here.authenticate(token, "r")
    assert actor is not None
    assert (actor.name, actor.role, actor.token_id) == ("token:t", Role.OPERATOR, _id(token))
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with pool.acquire() as connection:

        def listen(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            heard.put_nowait(str(payload))

        await connection.add_listener("stowage", listen)
        await there.revoke(_id(token), SYSTEM)
        async with asyncio.timeout(1):
            assert await heard.get() == f"token:{_id(token)}"
        await connection.remove_listener("stowage", listen)
    here.forget(_id(token))
    assert await here.authenticate(token, "r") is None
    assert not await here.is_live(_id(token))


async def test_token_forgotten_while_it_is_read_is_not_remembered(pool: Pool) -> None:
    """The row was read before the revocation, the notification came before the answer: it must not stick."""
    tokens = Tokens(pool)
    token = await _create(tokens, "t")
    reading = asyncio.create_task(tokens.authenticate(token, "r"))
    await asyncio.sleep(0)  # it is at the database
    tokens.forget(_id(token))
    await reading
    await pool.execute("UPDATE api_token SET revoked_at = now() WHERE id = $1", _id(token))
    assert await tokens.authenticate(token, "r") is None


async def test_token_that_many_ask_for_at_once_is_read_once_but_anew_after_a_forget(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens(pool)
    token_id = _id(await _create(tokens, "t"))
    readings = 0
    get = store.get

    async def counted(connection: Connection, token_id: str) -> store.TokenRow | None:
        nonlocal readings
        readings += 1
        return await get(connection, token_id)

    monkeypatch.setattr(store, "get", counted)
    assert await asyncio.gather(*(tokens.is_live(token_id) for _ in range(20))) == [True] * 20
    assert readings == 1
    tokens.forget(token_id)
    early = [asyncio.create_task(tokens.is_live(token_id)) for _ in range(5)]
    await until(lambda: readings == 2)
    tokens.forget(token_id)
    assert await tokens.is_live(token_id) and all(await asyncio.gather(*early))
    assert readings == 3


async def test_remembered_token_asks_the_database_nothing(pool: Pool) -> None:
    tokens = Tokens(pool)
    token = await _create(tokens, "t")
    assert await tokens.authenticate(token, "r") is not None
    taken = [await pool.acquire() for _ in range(pool.get_max_size())]
    async with asyncio.timeout(1):
        assert await tokens.authenticate(token, "r") is not None
    for connection in taken:
        await pool.release(connection)


async def test_last_use_is_written_once_a_minute(pool: Pool) -> None:
    token = await _create(Tokens(pool), "t")

    async def last_used() -> dt.datetime | None:
        async with pool.acquire() as connection:
            row = await store.get(connection, _id(token))
        assert row is not None
        return row.last_used_at

    assert await last_used() is None
    for _ in range(3):  # another replica each
        await Tokens(pool).authenticate(token, "r")
    first = await last_used()
    assert first is not None
    await pool.execute("UPDATE api_token SET last_used_at = now() - interval '61 seconds'")
    await Tokens(pool).authenticate(token, "r")
    second = await last_used()
    assert second is not None
    assert abs(second - first) < dt.timedelta(seconds=30)


async def test_ensure_admin_writes_a_private_file_whose_token_works(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "admin.token"
    tokens = Tokens(pool)
    assert await tokens.ensure_admin(path) == path
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text().strip()
    actor = await tokens.authenticate(text, "r")
    assert actor is not None
    assert (actor.name, actor.role) == ("token:admin", Role.ADMIN)
    assert await tokens.ensure_admin(path) == path
    assert path.read_text().strip() == text
    assert [p.name for p in tmp_path.iterdir()] == ["admin.token"]


async def test_ensure_admin_after_a_crash_before_the_row_uses_the_file(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "admin.token"
    text = f"stw_{new_id()}_{'s' * 43}"
    path.write_text(text + "\n")
    path.chmod(0o644)
    tokens = Tokens(pool)
    assert await tokens.ensure_admin(path) == path
    assert await tokens.authenticate(text, "r") is not None
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("is_shared", [True, False])
async def test_ensure_admin_of_many_managers_at_once_leaves_files_that_work(
    pool: Pool, tmp_path: Path, is_shared: bool
) -> None:
    paths = [tmp_path / ("admin.token" if is_shared else f"admin.token.{n}") for n in range(5)]
    await asyncio.gather(*(Tokens(pool).ensure_admin(path) for path in paths))
    written = [path for path in set(paths) if path.exists()]
    assert written
    for path in written:
        assert await Tokens(pool).authenticate(path.read_text().strip(), "r") is not None
    assert await pool.fetchval("SELECT count(*) FROM api_token") == len(written)


async def test_ensure_admin_with_other_admins_makes_none(pool: Pool, tmp_path: Path) -> None:
    await _create(Tokens(pool), "boss", "admin")
    assert await Tokens(pool).ensure_admin(tmp_path / "admin.token") is None
    assert list(tmp_path.iterdir()) == []


async def test_ensure_admin_never_revives_a_revoked_token(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "admin.token"
    tokens = Tokens(pool)
    await tokens.ensure_admin(path)
    text = path.read_text().strip()
    await _create(tokens, "boss", "admin")
    await tokens.revoke(_id(text), SYSTEM)
    assert await tokens.ensure_admin(path) is None
    assert await tokens.authenticate(text, "r") is None


@pytest.mark.parametrize("end", ["revoked_at = now()", "expires_at = now() - interval '1 minute'", "role = 'viewer'"])
async def test_ensure_admin_where_no_admin_is_left_makes_a_new_one(pool: Pool, tmp_path: Path, end: str) -> None:
    """Or nobody could ever come in again."""
    path = tmp_path / "admin.token"
    tokens = Tokens(pool)
    await tokens.ensure_admin(path)
    old = path.read_text().strip()
    await pool.execute(f"UPDATE api_token SET {end}")
    tokens.forget()

    assert await tokens.ensure_admin(path) == path

    text = path.read_text().strip()
    actor = await tokens.authenticate(text, "r")
    assert actor is not None and actor.role is Role.ADMIN
    assert text != old
    found = await tokens.authenticate(old, "r")
    assert found is None or found.role is not Role.ADMIN
    assert path.stat().st_mode & 0o777 == 0o600
    assert await tokens.ensure_admin(path) == path
    assert path.read_text().strip() == text


async def test_ensure_admin_refuses_a_file_that_is_no_token(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "admin.token"
    path.write_text("hello")
    with pytest.raises(ConfigError, match=r"admin\.token"):
        await Tokens(pool).ensure_admin(path)
    path.unlink()
    os.symlink("/etc/hostname", path)
    with pytest.raises(ConfigError):
        await Tokens(pool).ensure_admin(path)
    with pytest.raises(ConfigError):
        await Tokens(pool).ensure_admin(tmp_path / "none" / "admin.token")
