"""After a test: everything that it made goes, by the API alone but for the mark of the default, which no call takes off."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from tests.fleet.fleet import Api, Fleet, until

#: Names of the tokens that the stack itself has.
KEPT_TOKENS = ("admin", "viewer")
_BACKENDS = "/v1/storage_backends"
_VOLUMES = "/v1/volumes"


async def clean(fleet: Fleet, *, keep_hosts: Sequence[str]) -> None:
    """No backend, volume, image, operation under way, foreign token or host more is left. Raises AssertionError after PATIENCE_S."""

    async def is_over() -> bool:
        rows = await fleet.sql("SELECT id::text, state FROM operation WHERE state IN ('running', 'undoing', 'stuck')")
        await _each(rows, lambda row: _end_operation(fleet.api, row["id"], row["state"]))
        return not rows

    await until(is_over, "the operations of the test to end")

    async def is_empty() -> bool:
        return not await _remove_bytes(fleet)

    await until(is_empty, "the volumes of the test to go")

    async def is_bare() -> bool:
        await fleet.sql("UPDATE backend SET is_default = false WHERE is_default AND deleted_at IS NULL")
        rows = await fleet.sql("SELECT id::text FROM backend WHERE deleted_at IS NULL")
        await _each(rows, lambda row: fleet.api("DELETE", f"{_BACKENDS}/{row['id']}"))
        return not rows

    await until(is_bare, "the backends of the test to go")
    await _remove_tokens(fleet)
    await _remove_hosts(fleet.api, keep_hosts)


async def _end_operation(api: Api, operation_id: str, state: str) -> None:
    await api("POST", f"/v1/operations/{operation_id}/{'retry' if state == 'stuck' else 'cancel'}")


async def _remove_bytes(fleet: Fleet) -> bool:
    """Whether there was something left to remove. What others depend on goes in a later round."""
    api = fleet.api
    held = await fleet.sql(
        "SELECT a.volume_id::text AS id, h.name AS host FROM attachment a JOIN host h ON h.id = a.host_id"
        " WHERE a.closed_at IS NULL"
    )
    await _each(held, lambda row: api("POST", f"{_VOLUMES}/{row['id']}/detach", {"host": row["host"], "force": True}))
    rows = await fleet.sql("SELECT id::text, role, parent_id::text FROM volume WHERE deleted_at IS NULL")
    of = {role: [row for row in rows if row["role"] == role] for role in ("snapshot", "volume", "image")}
    await _each(of["snapshot"], lambda row: api("DELETE", f"{_VOLUMES}/{row['parent_id']}/snapshots/{row['id']}"))
    await _each(of["volume"], lambda row: api("DELETE", f"{_VOLUMES}/{row['id']}"))
    await _each(of["image"], lambda row: api("DELETE", f"/v1/images/{row['id']}"))
    return bool(rows)


async def _remove_tokens(fleet: Fleet) -> None:
    rows = await fleet.sql("SELECT id::text FROM api_token WHERE revoked_at IS NULL AND name <> ALL($1)", KEPT_TOKENS)
    await _each(rows, lambda row: fleet.api("DELETE", f"/v1/tokens/{row['id']}"))


async def _remove_hosts(api: Api, keep: Sequence[str]) -> None:
    hosts = (await api("GET", "/v1/hosts")).body["items"]
    others = [host for host in hosts if host["name"] not in keep and host["state"] != "revoked"]
    await _each(others, lambda host: api("DELETE", f"/v1/hosts/{host['id']}"))


async def _each(rows: Iterable[Any], do: Callable[[Any], Awaitable[object]]) -> None:
    await asyncio.gather(*(do(row) for row in rows))
