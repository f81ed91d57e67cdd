"""Reading a JSON object field by field: each value by itself, every wrong one reported, nothing of it repeated.

msgspec stops at the first error (ui/NOTES.md, trap 8); here what is wrong is noted and the reading goes
on, and what was not read is unknown. The words never repeat a value, for it may be a secret in the wrong place.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar, cast

import msgspec

from schemas.problems import FieldError

_T = TypeVar("_T")


class MalformedBody(Exception):
    """The bytes are not what a body may be; the text says why, and quotes nothing of them."""


class InvalidFields(Exception):
    """Every wrong field of a body, a query or the headers."""

    def __init__(self, *errors: FieldError) -> None:
        super().__init__("; ".join(f"{e.pointer} {e.detail}" for e in errors))
        self.errors = errors


class Wrong(Exception):
    """What is wrong with one value: (pointer below it, words) each."""

    def __init__(self, *errors: tuple[str, str]) -> None:
        super().__init__()
        self.errors = errors


class Fields:
    """The fields of one object, taken one by one. After a wrong one `take` goes on with a blank; finish() raises.

    at: the pointer to the object itself.
    """

    def __init__(self, raw: Mapping[str, Any], at: str = "") -> None:
        self._raw = raw
        self._at = at
        self._taken: set[str] = set()
        self.errors: list[FieldError] = []

    def take(self, name: str, read: Callable[[object], _T], blank: _T, *, is_required: bool = False) -> _T:
        self._taken.add(name)
        if name not in self._raw:
            if is_required:
                self._wrong(name, "is required")
            return blank
        try:
            return read(self._raw[name])
        except Wrong as wrong:
            for below, detail in wrong.errors:
                self._wrong(name + below, detail)
            return blank

    def refuse(self, name: str, detail: str) -> None:
        """The field is known and must not be there."""
        if name in self._raw:
            self._wrong(name, detail)
            self._raw = {key: value for key, value in self._raw.items() if key != name}

    def finish(self, *, is_unknown_allowed: bool = False) -> None:
        if not is_unknown_allowed:
            known = ", ".join(sorted(self._taken))
            for key in self._raw.keys() - self._taken:
                self._wrong(pointer_token(key), f"is not a field here; known are {known}")
        if self.errors:
            raise InvalidFields(*sorted(self.errors, key=lambda e: e.pointer))

    def _wrong(self, below: str, detail: str) -> None:
        self.errors.append(FieldError(pointer=f"{self._at}/{below}", detail=detail))


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object, or MalformedBody: empty, broken, not UTF-8, nested too deep, NaN, a key twice, or no object."""
    if not raw:
        raise MalformedBody("the body is empty: send a JSON object")
    try:
        value = msgspec.json.decode(raw)
        # A second reader, because msgspec lets the last of two equal keys win without a word.
        json.loads(raw.decode(), object_pairs_hook=_distinct)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise MalformedBody("the body is not valid JSON in UTF-8") from None
    except RecursionError:
        raise MalformedBody("the body is nested too deep") from None
    if not isinstance(value, dict):
        raise MalformedBody("the body must be a JSON object")
    return cast("dict[str, Any]", value)


def boolean(value: object) -> bool:
    return value if isinstance(value, bool) else fail("must be true or false")


def json_object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else fail("must be an object")


def object_or_null(value: object) -> dict[str, Any]:
    return {} if value is None else json_object(value)


def text(max_length: int) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= max_length or not value.isprintable():
            fail(f"must be text of 1 to {max_length} characters without control characters")
        return value

    return read


def whole(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            fail(f"must be a whole number from {low} to {high}")
        return value

    return read


def one_of(*words: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        return value if isinstance(value, str) and value in words else fail(f"must be one of {', '.join(words)}")

    return read


def fail(detail: str) -> NoReturn:
    raise Wrong(("", detail))


def pointer_token(key: str) -> str:
    """RFC 6901; an unknown key is cut, for somebody may have pasted anything there."""
    return key[:64].replace("~", "~0").replace("/", "~1")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedBody("an object in the body has the same key twice")
    return found
