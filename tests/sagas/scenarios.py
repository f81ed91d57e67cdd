"""How to bring each saga about. A saga without a scenario fails the test that counts them."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from manager.sagas.catalog import SAGAS
from manager.sagas.steps import SagaDef
from tests.fleet.fleet import Answer, Api, Fleet
from tests.fleet.world import WWID

SMB = {
    "name": "office",
    "kind": "smb",
    "config": {"server": "nas", "share": "vms"},
    "credentials": {"username": "svc", "password": "right"},
}
SAN = {
    "name": "san",
    "kind": "iscsi_lvm",
    "config": {"portal": "10.0.0.9:3260", "target_iqn": "iqn.2026-01.org.example:vms", "vg_name": "vg_vms"},
    "credentials": {"username": "chap", "password": "right"},
}


MIB = 2**20


@dataclass(frozen=True)
class Scenario:
    """arrange: what must be there before. ask: the request that starts the saga. look: what of the fleet matters, and how that is
    when the saga is complete and when it is as if nothing had been asked.

    is_kept: a failure undoes nothing: what was done stays so, or is gone on with by itself. without: steps that this way of the saga does not have.
    """

    arrange: Callable[[Fleet], Awaitable[None]]
    ask: Callable[[Api], Awaitable[Answer]]
    when_complete: dict[str, Any]
    when_undone: dict[str, Any]
    look: Callable[[Fleet], Awaitable[dict[str, Any]]]
    is_kept: bool = False
    without: frozenset[str] = frozenset()

    @property
    def hosts(self) -> tuple[str, ...]:
        """All commands of a volume's saga go to one host, and each host more takes its time in hundreds of tests."""
        return ("hv1",) if self.look is volumes else ("hv1", "hv2")

    @property
    def when_failed(self) -> dict[str, Any]:
        return self.when_complete if self.is_kept else self.when_undone


async def _nothing(_: Fleet) -> None:
    return


async def _smb(fleet: Fleet) -> None:
    answer = await fleet.api("POST", "/v1/storage_backends", SMB)
    assert answer.status == 201, answer


async def _blank_san(fleet: Fleet) -> None:
    fleet.world.blank.add("iqn.2026-01.org.example:vms")
    answer = await fleet.api("POST", "/v1/storage_backends", SAN)
    assert (answer.status, answer.body["state"]) == (201, "needs_initialization"), answer


async def _add(api: Api) -> Answer:
    return await api("POST", "/v1/storage_backends", SMB)


async def _edit(api: Api) -> Answer:
    body = {"config": {"server": "nas2"}, "credentials": {"password": "newer"}, "labels": {"tier": "gold"}}
    return await api("PATCH", "/v1/storage_backends/office", body)


async def _rotatable(fleet: Fleet) -> None:
    fleet.world.passwords.add("newer")
    await _smb(fleet)


async def _delete(api: Api) -> Answer:
    return await api("DELETE", "/v1/storage_backends/office")


async def _initialize(api: Api) -> Answer:
    return await api("POST", "/v1/storage_backends/san/initialize", {"confirm": "san", "wwid": WWID})


async def backends(fleet: Fleet) -> dict[str, Any]:
    """name -> (state, server, credential version) of the live backends."""
    rows = await fleet.sql(
        "SELECT name, state, config::jsonb ->> 'server' AS server, credential_version FROM backend WHERE deleted_at IS NULL"
    )
    return {r["name"]: (r["state"], r["server"], r["credential_version"]) for r in rows}


# Volumes. All of them have 1 MiB, and what a host has written there is one letter again and again.


async def _shares(fleet: Fleet, *names: str) -> None:
    """Shares that every host sees, of which none clones."""
    fleet.world.is_cloning = False
    for name in names:
        body = {"name": name, "kind": "nfs", "config": {"server": "nas", "export": f"/{name}"}}
        answer = await fleet.api("POST", "/v1/storage_backends", body)
        assert answer.status == 201, answer


async def _volume(fleet: Fleet) -> None:
    await _shares(fleet, "fast")
    await make_volume(fleet, "web", "fast", b"a")


async def _volume_and_share(fleet: Fleet) -> None:
    await _shares(fleet, "slow")
    await _volume(fleet)


async def make_volume(fleet: Fleet, name: str, backend: str, letter: bytes) -> None:
    answer = await fleet.api(
        "POST", "/v1/volumes", {"name": name, "size_bytes": MIB, "backend": backend, "format": "raw"}
    )
    assert answer.status == 201, answer
    write(fleet, answer.body["backend_id"], answer.body["locator"], letter)


def write(fleet: Fleet, backend_id: str, locator: str, letter: bytes) -> None:
    """As a virtual machine would through the attached path."""
    [path] = fleet.world.volumes_folder(backend_id).rglob(f"{locator}.data")
    path.write_bytes(letter * path.stat().st_size)


async def _attached(fleet: Fleet) -> None:
    await _volume(fleet)
    answer = await attach(fleet.api, "hv1")
    assert answer.status == 200, answer


async def _frozen(fleet: Fleet) -> None:
    """A volume of `b`, whose snapshot holds `a`."""
    await _volume(fleet)
    answer = await fleet.api("POST", "/v1/volumes/web/snapshots", {"name": "before"})
    assert answer.status == 201, answer
    [row] = await fleet.sql("SELECT backend_id::text AS backend_id, locator FROM volume WHERE name = 'web'")
    write(fleet, row["backend_id"], row["locator"], b"b")


async def _wiped(fleet: Fleet) -> None:
    config = {**SAN["config"], "wipe_on_delete": "zero"}  # type: ignore[dict-item]
    answer = await fleet.api("POST", "/v1/storage_backends", {**SAN, "config": config})
    assert answer.status == 201, answer
    await make_volume(fleet, "web", "san", b"a")


async def _image(fleet: Fleet) -> None:
    await _shares(fleet, "fast")
    (fleet.images / "debian.raw").write_bytes(b"i" * MIB)


async def _drained(fleet: Fleet) -> None:
    await _volume_and_share(fleet)
    await make_volume(fleet, "db", "fast", b"d")
    answer = await fleet.api("PATCH", "/v1/storage_backends/fast", {"state": "draining"})
    assert answer.status == 200, answer


async def _register(api: Api) -> Answer:
    body = {
        "name": "debian",
        "path": f"{api.images}/debian.raw",
        "source_format": "raw",
        "format": "raw",
        "sha256": hashlib.sha256(b"i" * MIB).hexdigest(),
        "backend": "fast",
    }
    return await api("POST", "/v1/images", body)


async def attach(api: Api, host: str, mode: str = "rw") -> Answer:
    return await api("POST", "/v1/volumes/web/attach", {"host": host, "mode": mode})


async def volumes(fleet: Fleet) -> dict[str, Any]:
    """role and name -> (backend, size, which letter fills it, hosts that have it attached) of all that is alive."""
    rows = await fleet.sql(
        "SELECT v.role, v.name, v.backend_id::text AS backend_id, b.name AS backend, v.locator, v.size_bytes,"
        " array(SELECT h.name FROM attachment a JOIN host h ON h.id = a.host_id WHERE a.volume_id = v.id AND a.closed_at IS NULL)"
        " AS hosts FROM volume v JOIN backend b ON b.id = v.backend_id WHERE v.deleted_at IS NULL"
    )
    found: dict[str, Any] = {}
    for row in rows:
        content = fleet.world.contents(row["backend_id"]).get(row["locator"], b"")
        letters = {content[i : i + 1] for i in range(0, len(content), 4096)}
        shown = b"".join(sorted(letters)).replace(b"\0", b".").decode()
        found[f"{row['role']} {row['name']}"] = (row["backend"], row["size_bytes"], shown, *row["hosts"])
    return found


WEB = {"volume web": ("fast", MIB, "a")}
SNAPSHOT = {"snapshot before": ("fast", MIB, "a")}
SCENARIOS: dict[str, Scenario] = {
    "backend.add": Scenario(_nothing, _add, {"office": ("ready", "nas", 1)}, {}, backends),
    "backend.edit": Scenario(
        _rotatable, _edit, {"office": ("ready", "nas2", 2)}, {"office": ("ready", "nas", 1)}, backends
    ),
    "backend.delete": Scenario(_smb, _delete, {}, {"office": ("ready", "nas", 1)}, backends),
    "backend.initialize": Scenario(
        _blank_san, _initialize, {"san": ("ready", None, 1)}, {"san": ("needs_initialization", None, 1)}, backends
    ),
    "backend.evacuate": Scenario(
        _drained,
        lambda api: api("POST", "/v1/storage_backends/fast/evacuate", {"to": "slow"}),
        {"volume web": ("slow", MIB, "a"), "volume db": ("slow", MIB, "d")},
        {**WEB, "volume db": ("fast", MIB, "d")},
        volumes,
        is_kept=True,
    ),
    "volume.create": Scenario(
        _image, _register, {"image debian": ("fast", MIB, "i")}, {}, volumes, without=frozenset(("forget",))
    ),
    "volume.delete": Scenario(
        _wiped,
        lambda api: api("DELETE", "/v1/volumes/web"),
        {},
        {"volume web": ("san", 4 * MIB, "a")},
        volumes,
        is_kept=True,
    ),
    "volume.resize": Scenario(
        _volume,
        lambda api: api("POST", "/v1/volumes/web/resize", {"size_bytes": 2 * MIB}),
        {"volume web": ("fast", 2 * MIB, ".a")},
        WEB,
        volumes,
    ),
    "volume.attach": Scenario(
        _volume, lambda api: attach(api, "hv1"), {"volume web": ("fast", MIB, "a", "hv1")}, WEB, volumes
    ),
    "volume.detach": Scenario(
        _attached,
        lambda api: api("POST", "/v1/volumes/web/detach", {"host": "hv1"}),
        WEB,
        {"volume web": ("fast", MIB, "a", "hv1")},
        volumes,
        without=frozenset(("tell",)),
    ),
    "volume.migrate": Scenario(
        _volume_and_share,
        lambda api: api("POST", "/v1/volumes/web/migrate", {"backend": "slow"}),
        {"volume web": ("slow", MIB, "a")},
        WEB,
        volumes,
    ),
    "volume.revert": Scenario(
        _frozen,
        lambda api: api("POST", "/v1/volumes/web/snapshots/before/revert"),
        {"volume web": ("fast", MIB, "a"), **SNAPSHOT},
        {"volume web": ("fast", MIB, "b"), **SNAPSHOT},
        volumes,
        without=frozenset(("compare",)),
    ),
}


def steps_before_pivot(saga: SagaDef) -> list[str]:
    """Names of the steps whose failure is undone; the first runs inside the start and has no failure of its own."""
    return [name for name in _names(saga)[1:] if name in _names(saga)[: _names(saga).index(saga.pivot) + 1]]


def lines_when_complete(saga: SagaDef) -> list[str]:
    return [f"{when} {saga.kind} {name} done" for name in _names(saga) for when in ("before", "after")]


def lines_when_failed(saga: SagaDef, failed: str) -> list[str]:
    """The journal lines from the failure on."""
    names = _names(saga)
    undone = names[: names.index(failed) + 1][::-1]
    words = [f"{failed} failed", *(f"{name} undone" for name in undone)]
    return [f"{when} {saga.kind} {word}" for word in words for when in ("before", "after")]


def _names(saga: SagaDef) -> list[str]:
    """Of the steps that the scenario has."""
    return [step.name for step in saga.steps if step.name not in SCENARIOS[saga.kind].without]


ALL = list(SAGAS.values())
