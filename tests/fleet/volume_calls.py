"""What the tests of volumes on a fleet ask, and how they read the answers."""

from typing import Any

from tests.fleet.fleet import Answer, Api, Fleet, until
from tests.sagas.scenarios import MIB, SAN, write

BACKENDS = "/v1/storage_backends"
VOLUMES = "/v1/volumes"
TARGET = "iqn.2026-01.org.example:vms"


async def two_hosts(stowage: Fleet, **settings: Any) -> Api:
    """A manager and the hosts hv1 and hv2; the storage copies, and clones nothing at once."""
    stowage.world.is_cloning = False
    api = await stowage.manager(**settings)
    await stowage.agent("hv1")
    await stowage.agent("hv2")
    return api


async def share(api: Api, name: str, **more: Any) -> Any:
    """A backend that every host sees."""
    body = {"name": name, "kind": "nfs", "config": {"server": "nas", "export": f"/{name}"}, **more}
    return done(await api("POST", BACKENDS, body), 201)


async def folder(api: Api, name: str) -> Any:
    """A backend of each host's own."""
    return done(
        await api("POST", BACKENDS, {"name": name, "kind": "local_file", "config": {"root_dir": f"/srv/{name}"}}), 201
    )


async def san(api: Api, name: str = "san", **config: Any) -> Any:
    """A VG that both hosts see, its metadata one host's to change at a time."""
    body = {**SAN, "name": name, "config": {**SAN["config"], "target_iqn": f"{TARGET}-{name}", **config}}  # type: ignore[dict-item]
    return done(await api("POST", BACKENDS, body), 201)


async def volume(stowage: Fleet, name: str, backend: str, letter: str = "a", **more: Any) -> Any:
    """One of 1 MiB (of 4 on a VG), full of that letter."""
    made = done(await stowage.api("POST", VOLUMES, {"name": name, "size_bytes": MIB, "backend": backend, **more}), 201)
    write(stowage, made["backend_id"], made["locator"], letter.encode())
    return made


def content(stowage: Fleet, shown: Any) -> str:
    """The letter that fills a volume, snapshot or image as the API shows it; empty where it has no bytes."""
    found = stowage.world.contents(shown["backend_id"]).get(shown["locator"], b"")
    assert len(set(found)) <= 1, "one letter"
    return found[:1].decode()


async def attach(api: Api, name: str, host: str, mode: str = "rw") -> Answer:
    return await api("POST", f"{VOLUMES}/{name}/attach", {"host": host, "mode": mode})


async def begun(api: Api, method: str, path: str, body: Any = None) -> str:
    """The path of the operation that goes on."""
    answer = await api(method, path, body, Prefer="respond-async")
    assert answer.status == 202, answer
    return answer.headers["Location"]


async def ended(api: Api, operation: str) -> Any:
    """The operation when it has."""

    async def is_over() -> bool:
        return (await api("GET", operation)).body["state"] not in ("running", "undoing")

    await until(is_over, f"{operation} to end", patience_s=90.0)
    return done(await api("GET", operation))


async def until_offline(api: Api, host: str) -> None:
    async def is_offline() -> bool:
        return bool((await api("GET", f"/v1/hosts/{host}")).body["state"] == "offline")

    await until(is_offline, f"{host} to be offline")


def done(answer: Answer, status: int = 200) -> Any:
    assert answer.status == status, answer
    return answer.body


def refused(answer: Answer, status: int, code: str) -> str:
    """The words of the problem, which must be this one: of its only field if it is one field's."""
    assert (answer.status, answer.body["code"]) == (status, code), answer
    errors = answer.body["errors"]
    return f"{errors[0]['pointer']} {errors[0]['detail']}" if errors else str(answer.body["detail"])
