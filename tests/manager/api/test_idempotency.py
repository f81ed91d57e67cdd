"""A repeated POST gets the first one's answer, whatever became of the first."""

import asyncio
from typing import Any

import pytest

from manager.api.outcomes import RENDERED_AS
from manager.errors import Refused
from manager.sagas.catalog import SAGAS
from manager.store import idempotency as store
from schemas.operations import OperationState
from schemas.problems import Problem, ProblemCode
from schemas.volumes import VolumeRole
from tests.manager.api.conftest import Answer, Api
from tests.manager.api.stand_ins import make_operation

PATH = "/v1/storage_backends"
ADD: dict[str, Any] = {"name": "tank", "kind": "nfs", "config": {"server": "10.0.0.5", "export": "/tank/vms"}}


async def _add(
    api: Api, body: dict[str, Any] = ADD, key: str = "k1", role: str = "operator", path: str = PATH
) -> Answer:
    return await api.call("POST", path, body, role=role, headers={"Idempotency-Key": key})


async def _rows(api: Api) -> int:
    return int(await api.pool.fetchval("SELECT count(*) FROM idempotency"))


async def _open_row(api: Api, body: dict[str, Any], *, age_s: int, operation_id: str | None = None) -> None:
    """A row as a manager leaves it that was killed after the claim: the answer of a real request, taken back."""
    await _add(api, body)
    await api.pool.execute(
        "UPDATE idempotency SET status = NULL, headers = NULL, body = NULL, operation_id = $2,"
        " created_at = now() - make_interval(secs => $1)",
        float(age_s),
        operation_id,
    )
    api.backends.rows.clear()
    api.backends.calls.clear()


async def _interrupted(api: Api, path: str, body: dict[str, Any], operation_id: str) -> None:
    """The row of a request whose manager was killed when its saga had begun."""
    await _add(api, body, path=path)
    await api.pool.execute(
        "UPDATE idempotency SET status = NULL, headers = NULL, body = NULL, operation_id = $1", operation_id
    )


async def test_repeat_gets_the_first_answer_and_calls_nothing(api: Api) -> None:
    first = await _add(api)
    again = await _add(api)
    assert (again.status, again.body) == (201, first.body)
    for name in ("Location", "ETag", "Content-Type"):
        assert again.headers[name] == first.headers[name]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert len(api.backends.calls) == 1


async def test_without_a_key_each_post_is_its_own(api: Api) -> None:
    await api.call("POST", PATH, ADD)
    (await api.call("POST", PATH, ADD)).problem(409, "name_taken")
    assert await _rows(api) == 0


async def test_key_with_another_body_or_path_is_a_mismatch(api: Api) -> None:
    await _add(api)
    (await _add(api, ADD | {"name": "other"})).problem(409, "idempotency_mismatch")
    (await _add(api, path=f"{PATH}/preflight")).problem(409, "idempotency_mismatch")
    assert len(api.backends.calls) == 1


async def test_key_belongs_to_one_token(api: Api) -> None:
    await _add(api)
    (await _add(api, role="admin")).problem(409, "name_taken")
    assert len(api.backends.calls) == 2


async def test_refusals_are_kept(api: Api) -> None:
    api.backends.insert("tank")
    first = await _add(api)
    first.problem(409, "name_taken")
    again = await _add(api)
    again.problem(409, "name_taken")
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(api.backends.calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        Refused.because(ProblemCode.NO_AGENT, "nobody"),
        Refused.because(ProblemCode.AGENT_TIMEOUT, "late"),
    ],
)
async def test_server_errors_are_not_kept(api: Api, error: Exception) -> None:
    api.backends.failure = error
    assert (await _add(api)).status >= 500
    assert await _rows(api) == 0
    api.backends.failure = None
    assert (await _add(api)).status == 201


async def test_accepted_answer_is_replayed(api: Api) -> None:
    headers = {"Idempotency-Key": "k", "Prefer": "respond-async"}
    first = await api.call("POST", PATH, ADD, headers=headers)
    again = await api.call("POST", PATH, ADD, headers=headers)
    assert (again.status, again.headers["Location"]) == (202, first.headers["Location"])
    assert again.headers["Preference-Applied"] == "respond-async"
    assert len(api.backends.calls) == 1


async def test_actor_carries_the_key_to_the_saga(api: Api) -> None:
    await _add(api)
    await api.call("POST", PATH, ADD | {"name": "b"})
    assert [actor.idempotency and actor.idempotency[1] for actor in api.backends.actors] == ["k1", None]
    assert api.backends.actors[0].idempotency == (api.backends.actors[0].token_id, "k1")


async def test_twin_of_a_running_request_is_409_with_retry_after(api: Api) -> None:
    api.backends.gate.clear()
    first = asyncio.create_task(_add(api))
    await api.backends.entered.wait()
    twin = await _add(api)
    twin.problem(409, "wrong_state")
    assert twin.headers["Retry-After"] == "1"
    api.backends.gate.set()
    assert (await first).status == 201
    assert (await _add(api)).status == 201


async def test_many_twins_at_once_run_once(api: Api) -> None:
    answers = await asyncio.gather(*(_add(api) for _ in range(40)))
    assert len(api.backends.calls) == 1
    assert {answer.status for answer in answers} <= {201, 409}
    created = [answer for answer in answers if answer.status == 201]
    assert len({answer.body for answer in created}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in created) == 1
    assert all(answer.json["code"] == "wrong_state" for answer in answers if answer.status == 409)


async def test_crashed_request_stays_closed_for_a_minute_then_is_taken_up(api: Api) -> None:
    await _open_row(api, ADD, age_s=30)
    (await _add(api)).problem(409, "wrong_state")
    await api.pool.execute("UPDATE idempotency SET created_at = now() - interval '61 seconds'")
    answers = await asyncio.gather(*(_add(api) for _ in range(10)))
    assert len(api.backends.calls) == 1
    assert sum(answer.status == 201 and "Idempotency-Replayed" not in answer.headers for answer in answers) == 1


async def test_answer_of_an_attempt_that_was_retaken_is_not_kept(api: Api) -> None:
    await _open_row(api, ADD, age_s=61)
    async with api.pool.acquire() as connection:
        row = await connection.fetchrow("SELECT token_id, key, created_at FROM idempotency")
        assert row is not None
        old = row["created_at"]
        new = await store.retake(connection, token_id=row["token_id"], key="k1", mark=old)
        assert new is not None
        assert await store.retake(connection, token_id=row["token_id"], key="k1", mark=old) is None

        async def finish(mark: Any) -> bool:
            return await store.finish(
                connection, token_id=row["token_id"], key="k1", mark=mark, status=201, headers={}, body=b"{}"
            )

        assert not await finish(old)
        await store.release(connection, token_id=row["token_id"], key="k1", mark=old)
        assert await finish(new)


async def test_crash_after_the_saga_began_is_answered_by_the_saga(api: Api) -> None:
    operation = make_operation(OperationState.RUNNING, "storage_backends/none")
    await _open_row(api, ADD, age_s=3600, operation_id=operation.id)
    api.operations.rows[operation.id] = operation
    running = await _add(api)
    assert (running.status, running.headers["Location"]) == (202, f"/v1/operations/{operation.id}")

    backend = api.backends.insert("tank")
    done = make_operation(OperationState.SUCCEEDED, f"storage_backends/{backend.id}")
    api.operations.rows[operation.id] = done
    finished = await _add(api)
    assert (finished.status, finished.json["id"], finished.headers["ETag"]) == (201, backend.id, '"1"')
    assert finished.headers["Location"] == f"/v1/storage_backends/{backend.id}"
    assert finished.headers["Idempotency-Replayed"] == "true"

    api.backends.rows.clear()
    gone = await _add(api)
    assert (gone.status, gone.json["state"]) == (200, "succeeded")

    api.operations.rows[operation.id] = make_operation(
        OperationState.FAILED, done.subject, Problem(code=ProblemCode.PROBE_FAILED, detail="hv2 could not mount")
    )
    (await _add(api)).problem(422, "probe_failed")
    assert api.backends.calls == []


def test_operations_that_a_post_begins_are_all_rendered() -> None:
    """The other two are begun by PATCH and DELETE, which have no Idempotency-Key."""
    assert RENDERED_AS.keys() == SAGAS.keys() - {"backend.edit", "backend.delete"}


#: (path, body, kind, subject's collection, result, status): `web` and `debian` are there, and a snapshot `monday` of `web`.
CRASHED: list[tuple[str, dict[str, Any], str, str, dict[str, Any], int]] = [
    ("/v1/volumes", {"name": "web", "size_bytes": 512}, "volume.create", "volumes", {}, 201),
    ("/v1/volumes/old/clone", {"name": "web"}, "volume.create", "volumes", {}, 201),
    ("/v1/volumes/web/snapshots", {"name": "monday"}, "volume.create", "snapshots", {}, 201),
    ("/v1/images", {"name": "debian", "path": "/a", "sha256": "ab" * 32, "source_format": "raw"},
     "volume.create", "images", {}, 201),
    ("/v1/volumes/web/resize", {"size_bytes": 1024}, "volume.resize", "volumes", {}, 200),
    ("/v1/volumes/web/migrate", {"backend": "slow"}, "volume.migrate", "volumes", {}, 200),
    ("/v1/images/debian/migrate", {"backend": "slow"}, "volume.migrate", "images", {}, 200),
    ("/v1/volumes/web/snapshots/monday/revert", {}, "volume.revert", "volumes", {}, 200),
    ("/v1/volumes/web/detach", {}, "volume.detach", "volumes", {"is_confirmed": True}, 200),
    ("/v1/storage_backends/tank/evacuate", {"to": "slow"}, "backend.evacuate", "storage_backends",
     {"backend_id": "b", "moved_bytes": 7}, 200),
    ("/v1/storage_backends/tank/drift/delete", {"locator": "cd" * 16}, "volume.delete", "transients", {}, 204),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "kind", "collection", "result", "status"), CRASHED, ids=[path for path, *_ in CRASHED]
)
async def test_crash_after_a_volumes_saga_began_is_answered_as_the_first_would_have_been(
    api: Api, path: str, body: dict[str, Any], kind: str, collection: str, result: dict[str, Any], status: int
) -> None:
    web = api.volumes.insert("web")
    api.volumes.insert("old")
    rows = {
        "volumes": web,
        "images": api.volumes.insert("debian", VolumeRole.IMAGE),
        "snapshots": api.volumes.insert("monday", VolumeRole.SNAPSHOT, parent_id=web.id),
    }
    subject_id = rows[collection].id if collection in rows else "s"
    done = make_operation(OperationState.SUCCEEDED, f"{collection}/{subject_id}", kind=kind, result=result)
    await _interrupted(api, path, body, done.id)
    api.operations.rows[done.id] = done
    before = list(api.volumes.calls)

    answer = await _add(api, body, path=path)

    assert (answer.status, answer.headers["Idempotency-Replayed"]) == (status, "true")
    assert api.volumes.calls == before
    if status == 204:
        assert answer.body == b""
    elif kind in ("volume.detach", "backend.evacuate"):
        assert answer.json == result
    else:
        assert answer.json["id"] == subject_id
        assert ("ETag" in answer.headers) is (collection != "snapshots")
        assert ("Location" in answer.headers) is (status == 201)


async def test_crash_in_an_attach_is_answered_with_the_path_while_it_is_open(api: Api) -> None:
    web = api.volumes.insert("web")
    path, body = "/v1/volumes/web/attach", {"host": "hv1"}
    result = {"path": "/srv/web.raw", "type": "file", "epoch": 1}
    done = make_operation(OperationState.SUCCEEDED, f"volumes/{web.id}", kind="volume.attach", result=result)
    await _interrupted(api, path, body, done.id)
    api.operations.rows[done.id] = done
    before = len(api.volumes.calls)
    again = await _add(api, body, path=path)
    assert (again.status, again.json["host"], again.headers["Idempotency-Replayed"]) == (200, "hv1", "true")
    assert [verb for verb, _ in api.volumes.calls[before:]] == ["attach"], "the host makes it ready anew"

    api.volumes.hold(api.volumes.rows[web.id], "hv2")  # detached since, and attached elsewhere under the next epoch
    later = (await _add(api, body, path=path)).problem(409, "wrong_state")
    assert "detached since" in later["detail"]
    assert len(api.volumes.calls) == before + 1


async def test_answer_without_a_body_is_kept_and_repeated(api: Api) -> None:
    path, body = "/v1/storage_backends/tank/drift/delete", {"locator": "cd" * 16}
    first, again = await _add(api, body, path=path), await _add(api, body, path=path)
    assert [(answer.status, answer.body) for answer in (first, again)] == [(204, b"")] * 2
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Content-Type" not in again.headers
    assert len(api.volumes.calls) == 1


async def test_repeated_create_of_a_volume_makes_one(api: Api) -> None:
    body = {"name": "web", "size_bytes": 1024**2}
    answers = [await _add(api, body, path="/v1/volumes") for _ in range(3)]
    assert [answer.status for answer in answers] == [201, 201, 201]
    assert len({answer.body for answer in answers}) == 1
    assert [verb for verb, _ in api.volumes.calls] == ["create"]
    assert api.volumes.actors[0].idempotency == (api.volumes.actors[0].token_id, "k1")


async def test_saga_that_was_cancelled_stays_the_answer(api: Api) -> None:
    problem = Problem(code=ProblemCode.CANCELLED, detail="web was cancelled")
    ended = make_operation(OperationState.CANCELLED, "volumes/v", problem, kind="volume.create")
    body = {"name": "web", "size_bytes": 512}
    await _interrupted(api, "/v1/volumes", body, ended.id)
    api.operations.rows[ended.id] = ended
    before = list(api.volumes.calls)
    for _ in range(2):
        answer = (await _add(api, body, path="/v1/volumes")).problem(409, "cancelled")
        assert answer["operation"] == f"/v1/operations/{ended.id}"
    assert api.volumes.calls == before


async def test_saga_that_failed_for_want_of_an_agent_is_told_and_then_tried_anew(api: Api) -> None:
    failed = make_operation(
        OperationState.FAILED, "storage_backends/x", Problem(code=ProblemCode.NO_AGENT, detail="nobody")
    )
    await _open_row(api, ADD, age_s=5, operation_id=failed.id)
    api.operations.rows[failed.id] = failed
    (await _add(api)).problem(503, "no_agent")
    assert api.backends.calls == []
    answer = await _add(api)
    assert (answer.status, len(api.backends.calls)) == (201, 1)
    assert "Idempotency-Replayed" not in answer.headers


async def test_stuck_saga_stays_the_answer(api: Api) -> None:
    stuck = make_operation(OperationState.STUCK, "storage_backends/x")
    await _open_row(api, ADD, age_s=3600, operation_id=stuck.id)
    await api.pool.execute(
        "INSERT INTO operation"
        " (id, kind, version, key, subject, params, state, step, deadline, fence, actor, request_id)"
        " VALUES ($1, 'backend.add', 1, 'k', 's', '{}', 'stuck', 1, now(), 1, 'a', 'r')",
        stuck.id,
    )
    api.operations.rows[stuck.id] = stuck
    for _ in range(2):
        problem = (await _add(api)).problem(500, "saga_stuck")
        assert problem["operation"] == f"/v1/operations/{stuck.id}"
    assert api.backends.calls == []


async def test_error_while_the_saga_goes_on_keeps_the_key(api: Api) -> None:
    """A bug after the saga began must not free the key: the repeat would start a second saga."""
    operation_id = api.backends.operation_id

    async def begin_and_fail() -> None:
        await api.backends.entered.wait()
        await api.pool.execute(
            "INSERT INTO operation (id, kind, version, key, subject, params, step, deadline, fence, actor, request_id)"
            " VALUES ($1, 'add_backend', 1, 'k', 's', '{}', 1, now(), 1, 'a', 'r')",
            operation_id,
        )
        await api.pool.execute("UPDATE idempotency SET operation_id = $1", operation_id)
        api.backends.failure = RuntimeError("the connection broke")
        api.backends.gate.set()

    api.backends.gate.clear()
    answer, _ = await asyncio.gather(_add(api), begin_and_fail())
    answer.problem(500, "internal")
    assert await _rows(api) == 1
    api.operations.rows[operation_id] = make_operation(OperationState.RUNNING, "s")
    assert (await _add(api)).status == 202


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/tokens", {"name": "t", "role": "viewer"}), ("/v1/hosts/join_tokens", {"ttl_s": 60})]
)
async def test_answer_with_a_secret_is_kept_without_it(api: Api, path: str, body: dict[str, Any]) -> None:
    first = await _add(api, body, role="admin", path=path)
    again = await _add(api, body, role="admin", path=path)
    assert (first.status, again.status) == (201, 201)
    secret = first.json["token"]
    assert secret
    assert again.json["token"] is None
    kept = await api.pool.fetchval("SELECT body FROM idempotency")
    assert secret.encode() not in kept
    assert {k: v for k, v in again.json.items() if k not in ("token", "command")} == {
        k: v for k, v in first.json.items() if k not in ("token", "command")
    }


async def test_body_with_a_password_leaves_only_a_keyed_digest(api: Api) -> None:
    body = {
        "name": "office", "kind": "smb", "config": {"server": "nas", "share": "vms"},
        "credentials": {"username": "svc", "password": "c4n4ry-secret"},
    }  # fmt: skip
    assert (await _add(api, body)).status == 201
    row = await api.pool.fetchval("SELECT idempotency::text FROM idempotency")
    assert "c4n4ry" not in row
    assert b"c4n4ry".hex() not in row


async def test_old_keys_are_pruned(api: Api) -> None:
    await _add(api)
    await api.pool.execute("UPDATE idempotency SET created_at = now() - interval '25 hours'")
    async with api.pool.acquire() as connection:
        await store.prune(connection)
    assert await _rows(api) == 0


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ü"])
async def test_unusable_key_is_refused(api: Api, key: str) -> None:
    answer = await _add(api, key=key)
    answer.problem(400, "invalid_field")
    assert answer.pointers() == ["/header/Idempotency-Key"]
    assert api.backends.calls == []


async def test_post_to_nowhere_keeps_nothing(api: Api) -> None:
    (await _add(api, path="/v1/nowhere")).problem(404, "not_found")
    assert await _rows(api) == 0


async def test_post_without_a_body_may_have_a_key(api: Api) -> None:
    api.backends.insert("tank")
    answers = [await api.call("POST", f"{PATH}/tank/probe", headers={"Idempotency-Key": "p"}) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].body == answers[1].body
