"""A new kind touches three places: its struct in schemas/kinds.py, its driver, its line in agent/catalog.py.

Proven from both sides: no other file knows a kind by name, and a made-up kind that is put into those three
places alone is listed, validated, refused and served like the others.
"""

import ast
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from agent import catalog
from agent.drivers.base import Commands, Driver, Workers
from agent.errors import AgentFault
from agent.host import Host
from agent.workers import WorkerPool
from manager.api.meta import list_kinds
from schemas.backends import Capability
from schemas.command import Target
from schemas.faults import FaultCode
from schemas.ids import new_id
from schemas.kinds import KINDS, KindSpec
from schemas.problems import FieldError
from schemas.requests import decode_add_backend
from schemas.validation import fixed_fields, json_schema, remount_fields, validate_config
from tests.agent.fakes import FLEET, FakeDriver, Rig, World
from tests.agent.recorded_commands import RecordedCommands

ROOT = Path(__file__).parents[1]
#: Where a kind's name may stand.
HOMES = ("schemas/kinds.py", "agent/catalog.py", "agent/drivers/")
#: Elsewhere, with the reason; none of these decides anything by it.
EXCEPTIONS = {"manager/embedded/client.py": "what `stowage up` registers at its first start is a local folder"}
#: The specs of single kinds, by which a kind could be told as well as by its name.
SPEC_NAMES = frozenset(spec.kind.upper() for spec in KINDS.values())


class MadeUpConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    place: Annotated[
        str,
        msgspec.Meta(
            title="Place", description="Where it is", pattern=r"^[a-z]+$", min_length=1, max_length=20,
            extra={"error": "must be small letters", "change": "fixed", "placeholder": "here", "advanced": False, "secret": False},
        ),
    ]  # fmt: skip


MADE_UP = KindSpec("made_up", "Made up", MadeUpConfig, None, (Capability.SNAPSHOT,), is_shared=False)

MADE_UP_TARGET = Target(backend_id=new_id(), fleet_id=FLEET, kind="made_up", config={"place": "here"}, generation=1)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The kind in its three places: struct, driver, catalog line."""
    driver = FakeDriver(World())
    real = catalog.drivers
    monkeypatch.setitem(KINDS, MADE_UP.kind, MADE_UP)

    def drivers(commands: Commands, workers: Workers) -> dict[str, Driver]:
        return {**real(commands, workers), MADE_UP.kind: driver}

    monkeypatch.setattr(catalog, "drivers", drivers)
    return driver


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path, World())
    yield rig
    await rig.close()


def real_drivers() -> dict[str, Driver]:
    return dict(catalog.drivers(RecordedCommands(), WorkerPool()))


def test_every_kind_has_a_driver_and_every_driver_a_kind() -> None:
    assert real_drivers().keys() == KINDS.keys()
    assert all(name == spec.kind for name, spec in KINDS.items())


def test_every_driver_has_every_verb() -> None:
    verbs = [name for name in vars(Driver) if not name.startswith("_")]
    assert len(verbs) == 11
    for driver in real_drivers().values():
        assert all(callable(getattr(driver, verb)) for verb in verbs)


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "agent").rglob("*.py"), *(ROOT / "manager").rglob("*.py"), *(ROOT / "schemas").rglob("*.py")]),
    ids=str,
)
def test_no_other_file_knows_a_kind_by_name(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if name.startswith(HOMES):
        return
    tree = ast.parse(path.read_text())
    literals = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    } & KINDS.keys()
    specs = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "schemas.kinds"
        for alias in node.names
    } & SPEC_NAMES
    specs |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & SPEC_NAMES
    if name in EXCEPTIONS:
        compared = {
            value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Compare)
            for value in ast.walk(node)
            if isinstance(value, ast.Constant)
        }
        assert not compared & KINDS.keys()
        return
    assert not literals | specs, (
        f"{name} knows {', '.join(sorted(literals | specs))}: ask the kind's spec or the backend's capabilities"
    )


def test_no_sql_knows_a_kind_by_name() -> None:
    for path in (ROOT / "manager").rglob("*.sql"):
        text = path.read_text()
        assert not [kind for kind in KINDS if f"'{kind}'" in text], path


async def test_made_up_kind_is_listed_with_its_schema(made_up: Driver) -> None:
    response = await list_kinds(make_mocked_request("GET", "/v1/backend_kinds"))
    assert isinstance(response.body, bytes)
    listed = {kind["kind"]: kind for kind in json.loads(response.body)}
    assert listed.keys() == KINDS.keys()
    prop = listed["made_up"]["config_schema"]["properties"]["place"]
    assert (prop["title"], prop["pattern"], prop["x-ui"]["change"]) == ("Place", "^[a-z]+$", "fixed")
    assert listed["made_up"]["credentials_schema"] is None


def test_made_up_kind_is_validated_by_its_struct_alone(made_up: Driver) -> None:
    assert validate_config(MADE_UP, {"place": "here"}) == ({"place": "here"}, [])
    _, errors = validate_config(MADE_UP, {"place": "HERE", "other": 1})
    assert FieldError(pointer="/config/place", detail="must be small letters") in errors and len(errors) == 2
    assert fixed_fields(MADE_UP) == {"place"} and remount_fields(MADE_UP) == frozenset()
    assert json_schema(MadeUpConfig)["required"] == ["place"]


def test_made_up_kind_can_be_added(made_up: Driver) -> None:
    wanted = decode_add_backend(json.dumps({"name": "one", "kind": "made_up", "config": {"place": "here"}}).encode())
    assert (wanted.kind, wanted.config) == ("made_up", {"place": "here"})


async def test_made_up_kind_is_attached_by_its_driver(made_up: Driver, rig: Rig) -> None:
    host = host_with(rig, real_drivers())
    observation = await host.attach(MADE_UP_TARGET, establish=True)
    assert observation.latency_ms is not None


async def test_made_up_kind_without_its_catalog_line_is_kind_unsupported(
    monkeypatch: pytest.MonkeyPatch, rig: Rig
) -> None:
    monkeypatch.setitem(KINDS, MADE_UP.kind, MADE_UP)
    host = host_with(rig, real_drivers())
    with pytest.raises(AgentFault) as caught:
        await host.attach(MADE_UP_TARGET, establish=True)
    assert caught.value.fault.code is FaultCode.KIND_UNSUPPORTED


def host_with(rig: Rig, drivers: dict[str, Driver]) -> Host:
    return Host(
        config=rig.config, state=rig.state, journal=rig.journal, store=rig.store, drivers=drivers, board=rig.board
    )
