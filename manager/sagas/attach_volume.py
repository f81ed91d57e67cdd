"""Give one host the right to a volume, and make it ready there for a hypervisor. Kind `volume.attach`.

    none --open--> attached
    any failure: none, and nothing of it on the host

1. claim    row under a new epoch; refused while a writer has the volume, or readers for a writer    undo: row gone
2. attach   on the host: the path of a file, or of an active LV                                     undo: closed there
3. open     state, path, event                                                                      PIVOT

A host that has it already with the same mode is asked again under its old epoch (`is_again`), which is how one that
has lost its power gets its paths back; nothing is undone then.
"""

import contextlib
from typing import Any

from manager.errors import Refused
from manager.sagas import volume_moves as moves
from manager.sagas.resize_volume import usable
from manager.sagas.steps import Run, SagaDef, Step, StepFailed, TryAgain
from manager.store import attachments, events, hosts, volumes
from manager.store.attachments import AttachmentRow
from manager.store.pool import Connection
from manager.volume_place import place_in, spec_in
from schemas.events import EventType
from schemas.problems import ProblemCode
from schemas.volume_rpc import AttachedAt, AttachMode, AttachVolume, DetachVolume


async def claim(connection: Connection, run: Run, _: dict[str, Any]) -> dict[str, Any]:
    params = run.params
    host_id, mode = params["worker"], AttachMode(params["mode"])
    row = await usable(connection, run)
    if not await hosts.is_live(connection, host_id):
        raise Refused.because(ProblemCode.NO_AGENT, f"{run.registry.host_name(host_id)} was revoked")
    held = await attachments.of_volume(connection, row.id)
    mine = next((each for each in held if each.host_id == host_id), None)
    if mine is not None:
        if mine.mode is not mode:
            raise in_use(run, row.name, mine, "with another mode; detach it first")
        return {"attachment_id": mine.id, "epoch": mine.epoch, "is_again": True}
    blocking = [each for each in held if AttachMode.RW in (mode, each.mode)]
    if blocking:
        why = (
            "so it can be had by no other host"
            if blocking[0].mode is AttachMode.RW
            else "so no other host can write to it"
        )
        raise in_use(run, row.name, blocking[0], f"{why}; detach it there first")
    place = place_in(params)
    if place.is_one_host:
        users = (await volumes.hosts_in_use(connection, place.backend_id)).keys() - {host_id}
        if users:
            names = ", ".join(sorted(map(run.registry.host_name, users)))
            raise Refused.because(
                ProblemCode.VOLUME_IN_USE,
                f"the thin pool of {place.backend} is in use on {names}, and one host at a time can use it:"
                f" attach {row.name} there, or detach its volumes there first",
            )
    epoch = await volumes.raise_epoch(connection, row.id)
    made = await attachments.insert(
        connection, attachment_id=params["attachment_id"], volume_id=row.id, host_id=host_id, mode=mode, epoch=epoch
    )
    if made is None:
        raise Refused.because(ProblemCode.VOLUME_IN_USE, f"{row.name} was attached to another host a moment ago")
    return {"attachment_id": made.id, "epoch": epoch, "is_again": False}


async def unclaim(connection: Connection, run: Run, _: dict[str, Any]) -> None:
    """Where the host has not confirmed, its agent closes what is not in its list when it syncs, as after a force; the lease of a
    thin pool stays until then.
    """
    if not run.output["is_again"]:
        await attachments.forget(connection, run.output["attachment_id"])
    if not run.output.get("is_open"):
        await moves.let_go(connection, run, place_in(run.params))


async def attach(run: Run) -> dict[str, Any]:
    params, worker = run.params, run.params["worker"]
    command = AttachVolume(
        **run.head(worker, "attach_volume"),
        volume_id=params["volume_id"],
        spec=spec_in(params),
        epoch=run.output["epoch"],
        mode=AttachMode(params["mode"]),
    )
    place = place_in(params)
    found = await moves.ask(run, worker, command, AttachedAt, place=place if place.is_one_host else None)
    return {"path": found.path[:1024].replace("\0", ""), "type": "block" if found.type == "block" else "file"}


async def detach(run: Run) -> dict[str, Any]:
    """{"is_open"}: whether it may be open there all the same."""
    params, worker = run.params, run.params["worker"]
    if run.output["is_again"] or not (run.is_inherited or worker in run.asked):
        return {"is_open": False}
    if run.online([worker]):
        command = DetachVolume(
            **run.head(worker, "detach_volume"),
            volume_id=params["volume_id"],
            spec=spec_in(params),
            epoch=run.output["epoch"],
        )
        with contextlib.suppress(StepFailed, TryAgain):
            await moves.ask(run, worker, command, type(None))
            return {"is_open": False}
    return {"is_open": True}


async def open_(connection: Connection, run: Run, gained: dict[str, Any]) -> dict[str, Any]:
    output = {**run.output, **gained}
    row = await attachments.note_attached(connection, output["attachment_id"], path=output["path"], type=output["type"])
    await moves.let_go(connection, run, place_in(run.params))
    if not output["is_again"]:
        await note(connection, run, EventType.ATTACHMENT_OPENED, None, row)
    return {"result": {"path": row.path, "type": row.type, "epoch": row.epoch}}


async def note(
    connection: Connection,
    run: Run,
    type: EventType,
    before: AttachmentRow | None,
    after: AttachmentRow | None,
    **more: Any,
) -> None:
    """The event of an attachment that opened or closed."""
    await events.append(
        connection,
        type=type,
        collection="volumes",
        subject_id=run.params["volume_id"],
        actor=run.row.actor,
        request_id=run.row.request_id,
        data={
            "name": run.params["name"],
            "host": run.registry.host_name(run.params["worker"]),
            "before": attachments.shown(before) if before else None,
            "after": attachments.shown(after) if after else None,
            **more,
        },
    )


def in_use(run: Run, name: str, holder: AttachmentRow, why: str) -> Refused:
    host = run.registry.host_name(holder.host_id)
    return Refused.because(
        ProblemCode.VOLUME_IN_USE,
        f"{name} is attached to {host} ({holder.mode.value}), {why}",
        blockers=({"type": "attachment", "id": holder.id, "name": host},),
    )


ATTACH_VOLUME = SagaDef(
    kind="volume.attach",
    version=1,
    steps=(
        Step("claim", do_sql=claim, undo_sql=unclaim),
        Step("attach", do=attach, undo=detach),
        Step("open", do_sql=open_),
    ),
    pivot="open",
    # An LV is looked for and activated by LVM tools, which take seconds each on a slow host, behind a probe perhaps.
    budget_s=60.0,
)
