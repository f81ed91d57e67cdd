"""kill -9 of the agent in the middle of a verb, with real tools at work: afterwards it is done or undone, and nothing is left.

What is left is looked for by the fixture after every test, on the host and on the server.
"""

from collections.abc import Callable

import pytest

from tests.lab.backends import PATIENCE_S, Backend, Backends
from tests.lab.client import Api
from tests.lab.host import Host
from tests.lab.iscsi import KIND, added_blank, initialize, inspection, iscsi, mapped, sessions, target_with_group
from tests.lab.nfs import nfs
from tests.lab.qemu import wait_until
from tests.lab.smb import Login, smb
from tests.lab.storage import Chap, Storage

pytestmark = pytest.mark.slow

Add = Callable[[Backends], Backend | None]


@pytest.fixture(params=["nfs", "smb", "login", "lvcreate"])
def killed_add(request: pytest.FixtureRequest, storage: Storage, login: Login, chap: Chap) -> tuple[str, Add]:
    """At which tool the agent dies, and the add that runs it."""
    if request.param == "nfs":
        config = nfs(storage.export())
        return r"/sbin/mount\.nfs ", lambda backends: _attempt(backends, "nfs", config)
    if request.param == "smb":
        share = smb(storage.share())
        return r"/sbin/mount\.cifs ", lambda backends: _attempt(backends, "smb", share, login)
    san = iscsi(target_with_group(storage, chap))
    tool = "iscsiadm .*(--login|-o new)" if request.param == "login" else "lvcreate "
    return tool, lambda backends: _attempt(backends, KIND, san, chap.credentials)


def _attempt(
    backends: Backends, kind: str, config: dict[str, str], credentials: dict[str, str] | None = None
) -> Backend | None:
    """The backend, or None where the add was undone."""
    answer = backends.attempt(kind, config, credentials=credentials)
    assert answer.status in (201, 422, 503, 504), answer
    return backends.of(answer) if answer.status == 201 else None


def test_an_add_is_done_or_undone(backends: Backends, api: Api, hv1: Host, killed_add: tuple[str, Add]) -> None:
    tool, add = killed_add
    with hv1.killing_agent_at(tool):
        backend = add(backends)
    hv1.wait_online()

    if backend is None:
        assert api.get("/storage_backends")["items"] == []
        backend = add(backends)
    assert backend is not None
    backend.wait_for(hv1, "healthy")


def test_an_initialization_is_done_or_can_be_done_again(
    storage: Storage, backends: Backends, api: Api, hv1: Host, iqn: str, image: str
) -> None:
    backend = added_blank(backends, iscsi(iqn))
    wwid = inspection(api, backend)["wwid"]

    with hv1.killing_agent_at("vgcreate "):
        initialize(api, backend, wwid)
    hv1.wait_online()

    if backend.now()["state"] == "needs_initialization":
        assert initialize(api, backend, wwid).status == 200
    backend.wait_for(hv1, "healthy")
    assert storage.lvm(image, "vgck vg_vms") == ""


def test_a_removal_goes_on(backends: Backends, hv1: Host, vms_iqn: str) -> None:
    """At whichever of its tools is seen first; each takes a fifth of a second."""
    backend = backends.add(KIND, iscsi(vms_iqn))

    with hv1.killing_agent_at("lvchange .*--activate n|vgchange |iscsiadm .*--logout"):
        answer = backend.remove()

    assert answer.status in (202, 204), answer
    hv1.wait_online()
    wait_until(lambda: (sessions(hv1), mapped(hv1)) == ([], []), "hv1 to let go", PATIENCE_S)


def test_a_rotation_is_done_or_undone(
    storage: Storage, backends: Backends, hv1: Host, login: Login, other: Login
) -> None:
    """At the mount of the trial, or of the rotation itself: whichever comes first."""
    backend = backends.add("smb", smb(storage.share(users="labuser other")), credentials=login)

    with hv1.killing_agent_at(r"/sbin/mount\.cifs "):
        answer = backend.edit(credentials=other)

    assert answer.status in (200, 422, 503, 504), answer
    hv1.wait_online()
    backend.wait_for(hv1, "healthy")
