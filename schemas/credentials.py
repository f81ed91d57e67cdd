"""The masked secret type: it can be held and revealed, but not printed, compared slowly, pickled or encoded."""

import hmac
from collections.abc import Mapping
from typing import NoReturn


class Credentials:
    """What a backend's server wants from us, for example username and password; field name -> text.

    msgspec cannot encode it and pickle refuses it, so it has no way into a config, a journal, an
    event or a log by accident. `reveal()` is called in two places: the sealing envelope and the
    agent's credential store.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = dict(fields)

    def reveal(self) -> dict[str, str]:
        """The plain texts. Only for handing to sealing or to the tool that needs them."""
        return dict(self._fields)

    def get(self, name: str) -> str | None:
        """One plain text, or None where it was not given."""
        return self._fields.get(name)

    def merged(self, newer: "Credentials") -> "Credentials":
        """These with the newer ones laid over them."""
        return Credentials({**self._fields, **newer._fields})

    def __bool__(self) -> bool:
        return bool(self._fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Credentials) or self._fields.keys() != other._fields.keys():
            return False
        return all(hmac.compare_digest(v.encode(), other._fields[k].encode()) for k, v in self._fields.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<credentials: {', '.join(sorted(self._fields)) or 'none'}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials are not pickled")
