"""One page of a list that is wholly in memory, ordered by id, which is the order of making."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from manager.api import decoding


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


_T = TypeVar("_T", bound=_HasId)


def page_of(items: Iterable[_T], found: dict[str, list[str]], of: str) -> tuple[Sequence[_T], str | None]:
    """The page that the query asks for, and the cursor of the next. What comes or goes meanwhile moves nothing."""
    limit, after = decoding.limit(found), decoding.cursor(found, of)
    ordered = sorted((item for item in items if after is None or item.id > after), key=lambda item: item.id)
    return cut(ordered, limit, of)


def cut(items: Sequence[_T], limit: int, of: str) -> tuple[Sequence[_T], str | None]:
    """The first `limit` of the items, and a cursor if there are more."""
    page = items[:limit]
    return page, decoding.opaque(of, page[-1].id if len(items) > limit else None)
