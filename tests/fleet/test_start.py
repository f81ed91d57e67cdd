"""What a manager refuses to start with: keys that are not its fleet's, a name that another lives under."""

import asyncio
import json
import os
import signal
import time

import asyncpg
import pytest

from manager import app, replica
from manager.errors import ConfigError
from manager.keys import Keys
from manager.replica import ReplicaName
from manager.store import events
from manager.store.migrate import migrations
from manager.store.pool import Connection, connect, say_alive
from tests.bus.nats_server import RawPeer
from tests.fleet.fleet import Fleet, until

_NAME_SESSIONS = (
    "SELECT pid, application_name FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory'"
    " AND classid = 7311 AND granted AND datname = current_database()"
)


async def _refusal(stowage: Fleet, name: str = "manager-1") -> str:
    """Why the manager did not start. A refusal among its tasks comes in a group."""
    with pytest.raises((ConfigError, ExceptionGroup)) as refused:
        await stowage.manager(name)
    assert isinstance(refused.value, ConfigError), refused.value
    return str(refused.value)


async def _taken_again(stowage: Fleet, lost_pid: int) -> None:
    """The replica's name is held by one other session than the one that was lost."""

    async def is_so() -> bool:
        pids = [found["pid"] for found in await stowage.sql(_NAME_SESSIONS)]
        return len(pids) == 1 and pids != [lost_pid]

    await until(is_so, "the name to be taken again")


async def test_manager_whose_keys_are_gone_refuses_and_makes_no_others(stowage: Fleet) -> None:
    await stowage.child_manager()
    stowage.signal("manager-1", signal.SIGKILL)
    path = stowage.folder / "keys" / "keys.json"
    kept = path.read_bytes()
    path.unlink()

    refusal = await _refusal(stowage)

    assert "keys.json" in refusal and "missing" in refusal and "Restore" in refusal
    assert not path.exists()
    path.write_bytes(kept)
    path.chmod(0o600)
    await stowage.manager()


async def test_manager_with_another_fleets_keys_refuses_and_names_them(stowage: Fleet) -> None:
    await stowage.child_manager()
    stowage.signal("manager-1", signal.SIGKILL)
    operator = Keys.load(stowage.folder / "keys").trusted["operator"]
    path = stowage.folder / "keys" / "keys.json"
    path.unlink()
    Keys.load_or_create(stowage.folder / "keys")

    refusal = await _refusal(stowage)

    assert "account, agent_signer, operator, sealing, system_account differ" in refusal
    assert operator in refusal


async def test_manager_with_one_trusted_key_lost_refuses_and_leaves_the_file(stowage: Fleet) -> None:
    await stowage.child_manager()
    stowage.signal("manager-1", signal.SIGKILL)
    path = stowage.folder / "keys" / "keys.json"
    texts = json.loads(path.read_text())
    del texts["sealing"]
    path.write_text(json.dumps(texts))

    assert "lacks sealing" in await _refusal(stowage)
    assert "sealing" not in json.loads(path.read_text())


async def test_manager_on_a_database_of_an_earlier_version_adopts_its_keys(stowage: Fleet) -> None:
    await stowage.child_manager()
    stowage.signal("manager-1", signal.SIGKILL)
    await stowage.sql("UPDATE fleet SET trusted_keys = NULL")

    await stowage.manager()

    (row,) = await stowage.sql("SELECT trusted_keys FROM fleet")
    assert json.loads(row["trusted_keys"]) == Keys.load(stowage.folder / "keys").trusted


async def test_manager_whose_name_another_lives_under_refuses_and_names_it(
    stowage: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_PREDECESSOR_S", 0.3)
    await stowage.child_manager("manager-1")
    (row,) = await stowage.sql(_NAME_SESSIONS)

    refusal = await _refusal(stowage)

    assert "manager named 'manager-1' runs already" in refusal
    assert row["application_name"].removeprefix("stowage-manager ") in refusal
    assert str(os.getpid()) not in refusal
    await stowage.manager("manager-2")


async def test_manager_killed_and_started_again_at_once_serves_soon(stowage: Fleet) -> None:
    await stowage.child_manager("manager-1")
    stowage.signal("manager-1", signal.SIGKILL)
    began = time.monotonic()
    await stowage.child_manager("manager-1")
    assert time.monotonic() - began < replica._PREDECESSOR_S / 2  # pyright: ignore[reportPrivateUsage]


async def test_manager_whose_session_the_database_ended_takes_its_name_again(
    stowage: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_ALIVE_S", 0.05)
    await stowage.manager()
    (row,) = await stowage.sql(_NAME_SESSIONS)
    await stowage.sql("SELECT pg_terminate_backend($1)", row["pid"])

    await _taken_again(stowage, row["pid"])


async def test_name_that_another_took_meanwhile_ends_the_one_that_lost_it(
    stowage: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manager that was frozen for long, when its successor works already."""
    monkeypatch.setattr(replica, "_ALIVE_S", 0.05)
    monkeypatch.setattr(replica, "_PREDECESSOR_S", 0.3)
    monkeypatch.setattr(replica, "_AGAIN_S", 0.5)
    async with ReplicaName(stowage.database_url, "one") as first:
        (row,) = await stowage.sql(_NAME_SESSIONS)
        await stowage.sql("SELECT pg_terminate_backend($1)", row["pid"])
        async with ReplicaName(stowage.database_url, "one"):
            with pytest.raises(ConfigError, match="'one' runs already"):
                await first.keep()


async def test_replica_name_is_kept_through_a_database_that_refuses_us_for_a_while(
    stowage: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its password is changed, for one."""
    monkeypatch.setattr(replica, "_ALIVE_S", 0.01)
    monkeypatch.setattr(replica, "_AGAIN_S", 0.01)
    refusals = 3

    async def refusing(url: str) -> "asyncpg.Connection[asyncpg.Record]":
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise asyncpg.InvalidPasswordError("not now")
        return await connect(url)

    async with ReplicaName(stowage.database_url, "one") as name:
        monkeypatch.setattr(replica, "connect", refusing)
        keeping = asyncio.create_task(name.keep())
        (row,) = await stowage.sql(_NAME_SESSIONS)
        await stowage.sql("SELECT pg_terminate_backend($1)", row["pid"])

        await _taken_again(stowage, row["pid"])
        assert refusals < 0
        assert not keeping.done()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_replica_name_survives_a_statement_on_a_connection_that_is_ending(
    stowage: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg's error for it is no PostgresError and no InterfaceError."""
    monkeypatch.setattr(replica, "_ALIVE_S", 0.01)
    monkeypatch.setattr(replica, "_AGAIN_S", 0.01)

    async def ending(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        monkeypatch.setattr(replica, "say_alive", say_alive)
        raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")

    monkeypatch.setattr(replica, "say_alive", ending)
    async with ReplicaName(stowage.database_url, "one") as name:
        (row,) = await stowage.sql(_NAME_SESSIONS)
        keeping = asyncio.create_task(name.keep())

        await _taken_again(stowage, row["pid"])
        assert not keeping.done()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


@pytest.mark.parametrize(("mode", "is_in_the_way"), [("ACCESS SHARE", False), ("ROW EXCLUSIVE", True)])
async def test_manager_migrates_beside_a_backup_and_says_when_a_lock_keeps_it_from_it(
    stowage: Fleet, monkeypatch: pytest.MonkeyPatch, mode: str, is_in_the_way: bool
) -> None:
    """pg_dump holds ACCESS SHARE on every table for as long as it takes."""
    # The seventh replaces a trigger of a table that is written all the time; it does no harm twice.
    upto = [each for each in migrations() if each[0] <= 7]
    monkeypatch.setattr("manager.store.migrate.migrations", lambda: upto)
    await stowage.sql("DELETE FROM schema_migration WHERE version >= 7")
    monkeypatch.setattr("manager.store.pool.COMMAND_TIMEOUT_S", 1.0)
    holder = await asyncpg.connect(stowage.database_url)
    try:
        async with holder.transaction():
            await holder.execute(f"LOCK TABLE operation IN {mode} MODE")
            if is_in_the_way:
                refusal = await _refusal(stowage)
                assert "could not be brought to version" in refusal and "no answer in time" in refusal
            else:
                await stowage.manager()
        await stowage.manager("manager-2")
    finally:
        await holder.close()


async def test_readiness_asked_by_many_asks_the_database_once(stowage: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    oldest = events.oldest_unpublished_s

    async def counting(connection: Connection) -> float:
        nonlocal asked
        asked += 1
        return await oldest(connection)

    monkeypatch.setattr(events, "oldest_unpublished_s", counting)
    monkeypatch.setattr(app, "_EVENTS_FRESH_S", 3600.0)
    api = await stowage.manager()

    async def is_ready() -> bool:
        return (await api("GET", "/readyz")).status == 200

    await until(is_ready, "the manager to be ready")
    await asyncio.gather(*(api("GET", "/readyz") for _ in range(50)))
    assert asked == 1


async def test_join_command_shows_the_address_that_is_bound_or_the_configured_one(stowage: Fleet) -> None:
    bound = await stowage.manager("manager-1")
    other = await stowage.manager("manager-2", public_url="https://stowage.example.org/")
    for api, url in ((bound, bound.url), (other, "https://stowage.example.org")):
        answer = await api("POST", "/v1/hosts/join_tokens", {})
        assert answer.body["command"] == f"stowage-agent join {url} {answer.body['token']}"


async def test_readiness_says_that_events_wait_once_they_do_for_a_minute(stowage: Fleet) -> None:
    api = await stowage.manager()
    stowage.nats.stop()
    await stowage.sql(
        "INSERT INTO event (id, type, subject, subject_id, actor, request_id, data)"
        " VALUES (gen_random_uuid(), 'backend.updated', 's', gen_random_uuid(), 'test', 'r', '{}')"
    )
    assert "events" not in (await api("GET", "/readyz")).body["missing"]
    await stowage.sql("UPDATE event SET time = now() - interval '90 seconds' WHERE published_at IS NULL")

    async def says_so() -> bool:
        # A manager that has just started may not hear the database's notifications yet, and says that instead.
        answer = await api("GET", "/readyz")
        assert answer.status == 503
        return "the oldest has waited for " in answer.body["missing"].get("events", "")

    await until(says_so, "the manager to say that events wait")
    stowage.nats.start()

    async def is_ready() -> bool:
        return (await api("GET", "/readyz")).status == 200

    await until(is_ready, "the events to be in the stream")


async def test_revocation_while_the_bus_is_away_reaches_it_when_it_returns(stowage: Fleet) -> None:
    """Nobody asks again, and the replica that was asked is dead by then."""
    await stowage.child_manager("manager-2")
    api = await stowage.child_manager("manager-1")
    await stowage.agent("hv1")
    creds = stowage.states["hv1"].bus_creds_file
    await stowage.stop_agent("hv1")
    stowage.nats.stop()
    answer = await api("DELETE", "/v1/hosts/hv1")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert "is told again until it does" in answer.body["detail"]
    stowage.signal("manager-1", signal.SIGKILL)
    stowage.nats.start()

    async def is_refused() -> bool:
        try:
            await (await RawPeer.connect(stowage.nats.port, creds)).close()
        except PermissionError:
            return True
        return False

    await until(is_refused, "the bus to know the revocation")
