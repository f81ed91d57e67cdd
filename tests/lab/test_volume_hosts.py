"""Volumes between two hosts: one writer, also across power cuts and networks that break, and one writer of a VG's metadata."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.backends import Backends
from tests.lab.conftest import Place
from tests.lab.host import Host
from tests.lab.iscsi import KIND, disk_of, iscsi, mapped, target_with_group
from tests.lab.lab import Lab
from tests.lab.qemu import wait_until
from tests.lab.storage import Storage
from tests.lab.volumes import MIB, Volumes, digest, digest_of, stream, write, zeros

_SHARED = [pytest.param("nfs"), pytest.param("thick", marks=pytest.mark.slow)]
#: Seconds for a host that comes back to hear what it has lost, under emulation.
_FENCE_S = 120.0
_AT_ONCE = 20


@pytest.mark.parametrize("word", _SHARED)
def test_a_second_writer_is_refused_until_the_first_has_let_go(
    volumes: Volumes, place: Place, hv1: Host, hv2: Host, word: str
) -> None:
    volumes.create(place(word, (hv1, hv2)), "disk", mib=8)
    path = volumes.attach("disk", hv1)
    write(hv1, path, 1, 4)

    for mode in ("rw", "ro"):
        problem = volumes.refused(409, "/volumes/disk/attach", {"host": "hv2", "mode": mode})
        assert problem["code"] == "volume_in_use"
        assert "attached to hv1 (rw)" in problem["detail"]
        assert [each["name"] for each in problem["blockers"]] == ["hv1"]
    assert volumes.explain("disk", hv2) == ["it is attached to hv1 (rw)"]
    assert volumes.detach("disk", hv1)

    assert volumes.explain("disk", hv2) == []
    assert digest(hv2, volumes.attach("disk", hv2), 8) == digest_of(stream(1, 4), zeros(4))
    assert _has_no_lv(hv1)


def test_readers_on_two_hosts_keep_a_writer_away(volumes: Volumes, place: Place, hv1: Host, hv2: Host) -> None:
    volumes.create(place("nfs", (hv1, hv2)), "disk", mib=4)

    for host in (hv1, hv2):
        assert digest(host, volumes.attach("disk", host, "ro"), 4) == digest_of(zeros(4))

    assert volumes.refused(409, "/volumes/disk/attach", {"host": "hv2"})["code"] == "volume_in_use"
    volumes.detach("disk", hv2)
    assert "hv1 (ro)" in volumes.refused(409, "/volumes/disk/attach", {"host": "hv2"})["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("word", ["nfs", "thick"])
def test_a_host_that_lost_its_power_is_forced_off_and_has_nothing_when_it_returns(
    volumes: Volumes, place: Place, hv1: Host, hv2: Host, word: str
) -> None:
    volumes.create(place(word, (hv1, hv2)), "disk", mib=8)
    write(hv2, volumes.attach("disk", hv2), 1, 4)
    _cut_power(hv2)

    problem = volumes.refused(503, "/volumes/disk/detach", {"host": "hv2"})
    assert "hv2 is offline and may still be writing to disk" in problem["detail"]
    assert "force" in problem["detail"]
    assert "attached to hv2" in volumes.refused(409, "/volumes/disk/attach", {"host": "hv1"})["detail"]
    assert volumes.detach("disk", hv2, force=True) is False
    path = volumes.attach("disk", hv1)
    assert digest(hv1, path, 4) == digest_of(stream(1, 4))
    write(hv1, path, 2, 2)

    hv2.machine.boot_again()
    hv2.wait_online()
    _wait_for_word(volumes, hv2, word)
    assert _has_no_lv(hv2)
    assert digest(hv1, path, 8) == digest_of(stream(2, 2), stream(1, 4)[2 * MIB :], zeros(4))


@pytest.mark.slow
@pytest.mark.parametrize("word", ["nfs", "thick"])
def test_a_host_that_was_cut_off_is_fenced_off_when_it_returns(
    lab: Lab, volumes: Volumes, place: Place, hv1: Host, hv2: Host, word: str
) -> None:
    """Its VM never ended: it writes until its storage goes, and would go on when that comes back."""
    volumes.create(place(word, (hv1, hv2)), "disk", mib=8)
    path = volumes.attach("disk", hv2)
    write(hv2, path, 1, 4)
    with hv2.pouring(path) as goes_on:
        # The bus is not on that network, so the agent goes too, as in a host that is cut off altogether.
        lab.isolate("hv2")
        hv2.stop_agent()
        wait_until(lambda: not hv2.is_online(), "hv2 to be offline", 60.0)
        assert volumes.detach("disk", hv2, force=True) is False
        other = volumes.attach("disk", hv1)
        write(hv1, other, 2, 8)

        lab.heal()
        hv2.start_agent()
        hv2.wait_online()
        wait_until(lambda: not goes_on(), "the writer on hv2 to be ended", _FENCE_S)

    # What it had under way when its network broke may have come through in the moment after it healed; nothing since.
    wait_until(lambda: _has_no_lv(hv2), "hv2 to have no LV", _FENCE_S)
    write(hv1, other, 3, 8)
    assert digest(hv1, other, 8) == digest_of(stream(3, 8))
    assert [held["host"] for held in volumes.get("disk")["attachments"]] == ["hv1"]


@pytest.mark.slow
@pytest.mark.parametrize("word", ["nfs", "thick", "thin"])
def test_a_host_that_lost_its_power_gets_its_path_again(volumes: Volumes, place: Place, hv2: Host, word: str) -> None:
    volumes.create(place(word, (hv2,)), "disk", mib=8)
    path = volumes.attach("disk", hv2)
    write(hv2, path, 1, 8)
    _cut_power(hv2)
    hv2.machine.boot_again()
    hv2.wait_online()
    epoch = volumes.get("disk")["attachments"][0]["epoch"]

    wait_until(lambda: volumes.explain("disk", hv2) == [], "hv2 to have its backend again", _FENCE_S)

    assert volumes.attach("disk", hv2) == path
    assert digest(hv2, path, 8) == digest_of(stream(1, 8))
    assert volumes.get("disk")["attachments"][0]["epoch"] == epoch


@pytest.mark.slow
@pytest.mark.parametrize("word", _SHARED)
def test_an_agent_that_is_killed_takes_no_volume_with_it(volumes: Volumes, place: Place, hv1: Host, word: str) -> None:
    volumes.create(place(word), "disk", mib=4)
    path = volumes.attach("disk", hv1)

    with hv1.pouring(path) as goes_on:
        hv1.restart_agent()
        hv1.wait_online()
        wait_until(lambda: volumes.explain("disk", hv1) == [], "hv1 to have its backend again", _FENCE_S)
        assert goes_on()

    write(hv1, path, 1, 4)
    assert volumes.detach("disk", hv1)
    assert digest(hv1, volumes.attach("disk", hv1), 4) == digest_of(stream(1, 4))


@pytest.mark.slow
def test_twenty_creates_at_once_from_two_hosts_keep_a_volume_group_whole(
    storage: Storage, backends: Backends, volumes: Volumes, hv1: Host, hv2: Host
) -> None:
    iqn = target_with_group(storage)
    backend = backends.add(KIND, iscsi(iqn), on=(hv1, hv2))
    before = _sequence(hv1, iqn)

    def create(number: int) -> str:
        host = (hv1, hv2)[number % 2]
        return str(volumes.create(backend, f"disk-{number}", mib=4, host=host.name)["locator"])

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        locators = list(pool.map(create, range(_AT_ONCE)))

    names = sorted(f"sv_{locator}" for locator in locators)
    for host in (hv1, hv2):
        # Quiet and 0 where metadata is whole, and the same on both.
        host.courier.run(f"vgck --devices /dev/{disk_of(host, iqn)} vg_vms")
        assert [name for name in _lvs(host, iqn) if name.startswith("sv_")] == names
        assert _has_no_lv(host)
    assert _sequence(hv1, iqn) == _sequence(hv2, iqn)
    # Each create is at least one version of the metadata, and none was lost to another's.
    assert _sequence(hv1, iqn) >= before + _AT_ONCE
    report = volumes.drift(backend)
    assert report["strays"] == report["missing"] == report["sizes"] == []


def _cut_power(host: Host) -> None:
    """After which the manager knows that it is gone."""
    host.courier.run("sync")
    host.machine.cut_power()
    wait_until(lambda: not host.is_online(), f"{host.name} to be offline", 60.0)


def _wait_for_word(volumes: Volumes, host: Host, word: str) -> None:
    """The host has its backend again, so it has heard what it may use."""
    reasons = ["it is attached to hv1 (rw)"]
    wait_until(lambda: volumes.explain("disk", host) == reasons, f"{host.name} to have its backend again", _FENCE_S)


def _has_no_lv(host: Host) -> bool:
    """No volume's LV is active there."""
    return not [name for name in mapped(host) if "-sv_" in name]


def _lvs(host: Host, iqn: str) -> list[str]:
    return sorted(
        host.courier.run(f"lvs --devices /dev/{disk_of(host, iqn)} --noheadings -o lv_name vg_vms").out.split()
    )


def _sequence(host: Host, iqn: str) -> int:
    return int(host.courier.run(f"vgs --devices /dev/{disk_of(host, iqn)} --noheadings -o vg_seqno vg_vms").out)
