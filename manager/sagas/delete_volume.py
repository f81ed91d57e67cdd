"""Delete a volume, an image, a snapshot or what an operation left: its bytes, then its row. Kind `volume.delete`.

    ready | deleting --begin--> deleting --remove--> gone
    deleting --refused because something has it open--> ready: nothing of it was touched
    deleting --any other failure--> deleting: it cannot be used any more, and is tried again by itself or on demand

1. begin    refused while attached, while it has snapshots, while something is under way on it    undo: as drawn
2. wipe     by the backend's policy
3. erase    the incarnation is gone from the storage
4. remove   row gone, event                                   PIVOT

Of what lies in a folder of a host that was revoked only the row can go: nobody reaches its bytes any more (params `worker` null).
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import msgspec

from manager.errors import Refused
from manager.sagas import volume_moves as moves
from manager.sagas.create_volume import refused
from manager.sagas.steps import Run, SagaDef, Step, StepFailed, TryAgain
from manager.store import attachments, events, volumes
from manager.store.pool import Connection
from manager.store.volumes import VolumeRow
from manager.volume_place import Place, place_in, spec_in
from schemas.events import EventType
from schemas.problems import ProblemCode
from schemas.volume_rpc import Wipe
from schemas.volumes import VolumeRole, VolumeState

_DELETED = {
    VolumeRole.VOLUME: ("volumes", EventType.VOLUME_DELETED),
    VolumeRole.IMAGE: ("images", EventType.IMAGE_DELETED),
    VolumeRole.SNAPSHOT: ("snapshots", EventType.SNAPSHOT_DELETED),
}


async def begin(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    row = await volumes.lock(connection, run.params["volume_id"])
    if row is None:
        raise Refused.because(ProblemCode.NOT_FOUND, f"there is no volume {run.params['name']}")
    expected = run.params["if_match"]
    if expected is not None and row.version != expected:
        raise stale(row.name, row.version, expected)
    if row.state is VolumeState.CREATING or row.locator != run.params["spec"]["locator"]:
        raise Refused.because(ProblemCode.WRONG_STATE, f"{row.name} is being made or moved; try again")
    if other := await volumes.other_operation(connection, row.id, run.row.id):
        raise refused(moves.refuse_busy(row, other))
    held = [(a.id, run.registry.host_name(a.host_id)) for a in await attachments.of_volume(connection, row.id)]
    snapshots = await volumes.snapshots_of(connection, row.id)
    if held or snapshots:
        why = [f"it is attached to {', '.join(host for _, host in held)}"] if held else []
        why += [f"it has {len(snapshots)} snapshot(s)"] if snapshots else []
        raise Refused.because(
            ProblemCode.VOLUME_IN_USE,
            f"{row.name} cannot be deleted: {' and '.join(why)}",
            blockers=(
                *({"type": "attachment", "id": id, "name": host} for id, host in held),
                *({"type": "snapshot", "id": each.id, "name": each.name} for each in snapshots[:100]),
            ),
        )
    await volumes.mark_deleting(connection, row.id)
    if place_in(run.params).lane is not None:
        # Elsewhere what is taken away late, or twice, harms nobody, so another host may try it next.
        await volumes.set_worker(connection, row.id, run.params["worker"])
    return {"before": volumes.shown(row)}


async def give_back(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    """Who reads "in use" takes the deletion for refused: it must not come when the machine is switched off."""
    error, before = run.row.error, run.output["before"]
    is_refused = error is not None and error.code is ProblemCode.VOLUME_IN_USE
    if is_refused and before["state"] == VolumeState.READY and await volumes.lock(connection, run.params["volume_id"]):
        await volumes.give_back(connection, run.params["volume_id"])
        await moves.let_go(connection, run, place_in(run.params))


async def wipe(run: Run) -> dict[str, Any]:
    params = run.params
    # No look at the wipe has been answered yet, in this life or another: what is in use is refused before a byte is overwritten.
    with _telling(lambda: not run.is_inherited and not run.reported_at):
        await moves.wipe(run, params["worker"], spec_in(params), place_in(params), params["volume_id"])
    return {}


async def erase(run: Run) -> dict[str, Any]:
    params = run.params
    with _telling(lambda: place_in(params).wipe is Wipe.NONE):
        await moves.erase(run, params["worker"], spec_in(params), place_in(params), params["volume_id"])
    return {}


@contextlib.contextmanager
def _telling(is_untouched: Callable[[], bool]) -> Generator[None]:
    """What a failure means for the volume is said with it; volume_in_use means that it is as it was (`give_back`)."""
    try:
        yield
    except (StepFailed, TryAgain) as error:
        code = error.problem.code
        is_refused = code is ProblemCode.VOLUME_IN_USE and is_untouched()
        after = "nothing was deleted" if is_refused else "it stays in deleting, and goes as soon as its storage lets it"
        if code is ProblemCode.VOLUME_IN_USE and not is_refused:
            code = ProblemCode.PROBE_FAILED
        told = msgspec.structs.replace(error.problem, code=code, detail=f"{error.problem.detail}; {after}")
        raise type(error)(told) from error


async def remove(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    row = await volumes.lock(connection, run.params["volume_id"])
    if run.params["worker"] is not None:
        await moves.let_go(connection, run, place_in(run.params))
    if row is not None:
        await volumes.remove(connection, row.id)
        if row.role in _DELETED:
            collection, type_ = _DELETED[row.role]
            await events.append(
                connection,
                type=type_,
                collection=collection,
                subject_id=row.id,
                actor=run.row.actor,
                request_id=run.row.request_id,
                data={
                    "name": row.name,
                    "before": run.output["before"],
                    "after": None,
                    "is_erased": run.params["worker"] is not None,
                },
            )
    return {"result": {"volume_id": run.params["volume_id"]}}


def deletion_params(row: VolumeRow, place: Place, worker: str | None, if_match: int | None) -> dict[str, Any]:
    """worker: id of the host that does it; None: only the row goes."""
    return {
        "volume_id": row.id,
        "name": row.name,
        "backend_id": place.backend_id,
        "place": msgspec.to_builtins(place),
        "spec": msgspec.to_builtins(row.spec),
        "worker": worker,
        "if_match": if_match,
    }


def stale(name: str, version: int, expected: int) -> Refused:
    return Refused.because(ProblemCode.STALE_VERSION, f"{name} is at version {version}, not {expected}; read it again")


def _is_there(params: dict[str, Any]) -> bool:
    return params["worker"] is not None


DELETE_VOLUME = SagaDef(
    kind="volume.delete",
    version=1,
    steps=(
        Step("begin", do_sql=begin, undo_sql=give_back),
        Step(
            "wipe",
            do=wipe,
            is_long=True,
            applies=lambda params: _is_there(params) and place_in(params).wipe is not Wipe.NONE,
        ),
        Step("erase", do=erase, applies=_is_there),
        Step("remove", do_sql=remove),
    ),
    pivot="remove",
    budget_s=60.0,
)
