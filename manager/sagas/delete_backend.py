"""Remove a backend: guard, let every host go of it, take the row away. Kind `backend.delete`.

    ready | draining | needs_initialization --mark--> deleting --remove--> gone

1. mark      refused for the default and for live volumes; else state deleting   PIVOT
2. release   hosts unmount or log out, drop credentials and marker; best effort a host
3. remove    row gone, event; hosts that did not confirm keep a tombstone until they sync

From the pivot on there is only forward: whatever fails is tried again or left to the host's next sync.
Data on the storage is left alone; the result says what was left and where.
"""

from typing import Any

from manager.errors import Refused
from manager.sagas import moves
from manager.sagas.steps import Run, SagaDef, Step
from manager.store import backends, events
from manager.store.backends import BackendRow
from manager.store.pool import Connection
from schemas.backends import BackendState
from schemas.events import EventType
from schemas.problems import ProblemCode


def refuse_for_volumes(count: int, volumes: list[dict[str, str]]) -> Refused:
    """The refusal in the words that callers rely on."""
    return Refused.because(
        ProblemCode.BACKEND_IN_USE,
        f"backend has {count} live volume(s); delete or migrate them before removing the backend",
        blockers=tuple(volumes),
    )


def removal_refusal(row: BackendRow, count: int, volumes: list[dict[str, str]]) -> Refused | None:
    """Why the backend cannot be removed now; None when it can. count, volumes: of what lives on it."""
    if row.is_default:
        return Refused.because(
            ProblemCode.BACKEND_IS_DEFAULT,
            f"{row.name} is the default backend; make a different backend default first",
            blockers=(
                {"type": "default", "id": row.id, "name": row.name},
                *volumes,
            ),
        )
    if count:
        return refuse_for_volumes(count, volumes)
    if row.state in (BackendState.CREATING, BackendState.DELETING):
        return Refused.because(ProblemCode.WRONG_STATE, f"{row.name} is {row.state.value}")
    return None


async def mark(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    row = await backends.lock(connection, run.backend_id)
    if row is None:
        raise Refused.because(ProblemCode.NOT_FOUND, f"there is no backend {run.params['name']}")
    expected = run.params["if_match"]
    if expected is not None and row.version != expected:
        raise Refused.because(
            ProblemCode.STALE_VERSION, f"{row.name} is at version {row.version}, not {expected}; read it again"
        )
    count, volumes = await backends.live_volumes(connection, row.id)
    refusal = removal_refusal(row, count, volumes)
    if refusal is not None:
        raise refusal
    if not await backends.mark_deleting(connection, row.id):
        count, volumes = await backends.live_volumes(connection, row.id)
        raise refuse_for_volumes(count, volumes)
    return {"before": backends.shown(row)}


async def release(run: Run) -> dict[str, Any]:
    reports = await moves.release_each(run, run.params["hosts"])
    left = {run.registry.host_name(h): list(r.left) for h, r in reports.items() if r.left}
    lazy = [run.registry.host_name(h) for h, r in reports.items() if r.was_lazy]
    return {
        "left": left,
        "unmounted_lazily": lazy,
        "unconfirmed": [h for h in run.params["hosts"] if h not in reports and h not in run.confirmed],
    }


async def remove(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    row = await backends.lock(connection, run.backend_id)
    unconfirmed = [str(h) for h in run.output["unconfirmed"]]
    await backends.finish_removal(connection, run.backend_id, unconfirmed=unconfirmed, keep_row=True)
    result = {
        "backend_id": run.backend_id,
        "left": run.output["left"],
        "unmounted_lazily": run.output["unmounted_lazily"],
        "pending_hosts": [run.registry.host_name(h) for h in unconfirmed],
    }
    if row:
        await events.append(
            connection,
            type=EventType.BACKEND_DELETED,
            collection="storage_backends",
            subject_id=row.id,
            actor=run.row.actor,
            request_id=run.row.request_id,
            data={"name": row.name, "kind": row.kind, "before": run.output["before"], "after": None, **result},
        )
    return {"result": result}


DELETE_BACKEND = SagaDef(
    kind="backend.delete",
    version=1,
    steps=(
        Step("mark", do_sql=mark),
        Step("release", do=release),
        Step("remove", do_sql=remove),
    ),
    pivot="mark",
)
