"""Delete a volume, an image, a snapshot or what an operation left: its bytes, then its row. Kind `volume.delete`.

    ready | deleting --begin--> deleting --remove--> gone
    deleting --refused because something has it open--> ready: nothing of it was touched
    deleting --any other failure--> deleting: it cannot be used any more, and is tried again by itself or on demand

1. begin    refused while attached, while it has snapshots, while something is under way on it    undo: as drawn;
            a stray gets a row here (params `stray`), which goes again where something has it open
2. wipe     by the backend's policy
3. erase    the incarnation is gone from the storage
4. remove   row gone, event                                   PIVOT

Of what lies in a folder of a host that was revoked only the row can go: nobody reaches its bytes any more (params `worker` null).
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import asyncpg
import msgspec

from manager.errors import Refused
from manager.sagas import volume_moves as moves
from manager.sagas.create_volume import refused, takes_none
from manager.sagas.steps import Run, SagaDef, Step, StepFailed, TryAgain
from manager.store import attachments, events, volumes
from manager.store.pool import Connection
from manager.store.volumes import VolumeRow
from manager.volume_place import Place, place_in, spec_in, volume_params
from schemas.events import EventType
from schemas.ids import new_id
from schemas.problems import ProblemCode
from schemas.volume_rpc import FoundVolume, VolumeFormat, VolumeSpec, Wipe
from schemas.volumes import VolumeRole, VolumeState

#: What a row was made from that stands for bytes which no volume accounted for: somebody has ordered their end, so it is told.
_STRAY = "stray"
_DELETED = {
    VolumeRole.VOLUME: ("volumes", EventType.VOLUME_DELETED),
    VolumeRole.IMAGE: ("images", EventType.IMAGE_DELETED),
    VolumeRole.SNAPSHOT: ("snapshots", EventType.SNAPSHOT_DELETED),
}


async def begin(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    if run.params["stray"] is not None:
        await _note_stray(connection, run)
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


async def _note_stray(connection: Connection, run: Run) -> None:
    place, spec = place_in(run.params), spec_in(run.params)
    try:
        is_new = await volumes.insert(
            connection,
            volume_id=run.params["volume_id"],
            name=run.params["name"],
            backend_id=place.backend_id,
            size_bytes=spec.size_bytes,
            role=VolumeRole.TRANSIENT,
            locator=spec.locator,
            format=spec.format,
            state=VolumeState.READY,
            source=_STRAY,
            host_id=run.params["stray"]["host_id"],
        )
    except asyncpg.CheckViolationError:
        raise takes_none(place) from None
    if not is_new:
        raise no_stray()


async def give_back(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    """Who reads "in use" takes the deletion for refused: it must not come when the machine is switched off."""
    error, before = run.row.error, run.output["before"]
    is_refused = error is not None and error.code is ProblemCode.VOLUME_IN_USE
    if is_refused and before["state"] == VolumeState.READY and await volumes.lock(connection, run.params["volume_id"]):
        if run.params["stray"] is not None:
            await volumes.forget(connection, run.params["volume_id"])
        else:
            await volumes.give_back(connection, run.params["volume_id"])
        await moves.let_go(connection, run, place_in(run.params))


async def wipe(run: Run) -> dict[str, Any]:
    params = run.params
    # No look at the wipe has been answered yet, in this life or another: what is in use is refused before a byte is overwritten.
    with _telling(run, lambda: not run.is_inherited and not run.reported_at):
        await moves.wipe(run, params["worker"], spec_in(params), place_in(params), params["volume_id"])
    return {}


async def erase(run: Run) -> dict[str, Any]:
    params = run.params
    with _telling(run, lambda: place_in(params).wipe is Wipe.NONE):
        await moves.erase(run, params["worker"], spec_in(params), place_in(params), params["volume_id"])
    return {}


@contextlib.contextmanager
def _telling(run: Run, is_untouched: Callable[[], bool]) -> Generator[None]:
    """What a failure means for the volume is said with it; volume_in_use means that it is as it was (`give_back`)."""
    try:
        yield
    except (StepFailed, TryAgain) as error:
        code = error.problem.code
        # One that is in deleting for another reason already stays there, so its deletion is not refused.
        was_ready = run.output["before"]["state"] == VolumeState.READY
        is_refused = code is ProblemCode.VOLUME_IN_USE and was_ready and is_untouched()
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
        is_stray = row.role is VolumeRole.TRANSIENT and row.source == _STRAY
        if row.role in _DELETED or is_stray:
            collection, type_ = _DELETED.get(row.role, ("volumes", EventType.VOLUME_STRAY_DELETED))
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


def no_stray() -> Refused:
    return Refused.because(ProblemCode.WRONG_STATE, "a volume, or an operation, has this locator: it is no stray")


def deletion_of_stray(place: Place, worker: str, *, found: FoundVolume, host_id: str | None) -> dict[str, Any]:
    """Key, subject and params of the deletion of what no volume accounts for. host_id: whose folder it lies in, if it is one host's."""
    stray_id = new_id()
    spec = VolumeSpec(locator=found.locator, format=VolumeFormat(found.format), size_bytes=found.size_bytes)
    return {
        "key": f"volume:{stray_id}",
        "subject": f"transients/{stray_id}",
        "params": {
            "volume_id": stray_id,
            "name": found.name,
            "backend_id": place.backend_id,
            "place": msgspec.to_builtins(place),
            "spec": msgspec.to_builtins(spec),
            "worker": worker,
            "if_match": None,
            "stray": {"host_id": host_id},
        },
    }


def deletion_params(row: VolumeRow, place: Place, worker: str | None, if_match: int | None) -> dict[str, Any]:
    """worker: id of the host that does it; None: only the row goes."""
    return {**volume_params(row, place, worker), "if_match": if_match, "stray": None}


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
