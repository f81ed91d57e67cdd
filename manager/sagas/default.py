"""The default changes hands, with its event, in the caller's transaction."""

from typing import Protocol

from manager.errors import Refused
from manager.store import backends, events
from manager.store.backends import BackendRow
from manager.store.pool import Connection
from schemas.events import EventType
from schemas.problems import ProblemCode


class Author(Protocol):
    """Who changes it: a saga's run or a use case."""

    @property
    def actor_name(self) -> str: ...
    @property
    def request_id(self) -> str: ...


async def make_default(connection: Connection, author: Author, row: BackendRow, *, is_new: bool = False) -> str | None:
    """The id of the default before (None: there was none, or it was this one already).

    Raises Refused when the backend's state does not allow it.
    """
    try:
        before, is_changed = await backends.set_default(connection, row.id, is_new=is_new)
    except LookupError:
        raise Refused.because(
            ProblemCode.WRONG_STATE, f"{row.name} cannot be the default while it is {row.state.value}"
        ) from None
    after = await backends.lock(connection, row.id)
    if not is_changed or after is None:
        return None
    await events.append(
        connection,
        type=EventType.BACKEND_DEFAULT_CHANGED,
        collection="storage_backends",
        subject_id=row.id,
        actor=author.actor_name,
        request_id=author.request_id,
        data={
            "name": row.name,
            "kind": row.kind,
            "before": backends.shown(row),
            "after": backends.shown(after),
            "previous_default": before,
        },
    )
    return before
