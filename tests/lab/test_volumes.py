"""A volume's whole life on each storage, its bytes read back through the attached path: nothing lost, nothing made up, nothing left."""

import pytest

from tests.lab.conftest import Place
from tests.lab.host import Host
from tests.lab.volumes import ImageFile, Volumes, digest, digest_of, stream, write, zeros

#: Storage, format, and where the volume migrates to in the end.
WALKS = [
    pytest.param("nfs", "raw", "local", id="nfs raw"),
    pytest.param("nfs", "qcow2", "thick", id="nfs qcow2", marks=pytest.mark.slow),
    pytest.param("smb", "raw", "nfs", id="smb raw", marks=pytest.mark.slow),
    pytest.param("thick", "raw", "nfs", id="thick LVM", marks=pytest.mark.slow),
    pytest.param("thin", "raw", "smb", id="thin LVM", marks=pytest.mark.slow),
    pytest.param("xfs", "raw", "thick", id="xfs raw", marks=pytest.mark.slow),
]
EVENTS = [
    "volume.created",
    *("attachment.opened", "attachment.closed") * 3,
    "volume.reverted",
    *("attachment.opened", "attachment.closed"),
    "volume.resized",
    *("attachment.opened", "attachment.closed"),
    "volume.migrated",
    *("attachment.opened", "attachment.closed"),
    "volume.deleted",
]


class Walker:
    """Reads and writes volumes through attachments of one host."""

    def __init__(self, volumes: Volumes, host: Host) -> None:
        self._volumes = volumes
        self._host = host

    def write(self, name: str, seed: int, mib: int) -> None:
        write(self._host, self._volumes.attach(name, self._host), seed, mib)
        assert self._volumes.detach(name, self._host)

    def digest(self, name: str, mib: int) -> str:
        found = digest(self._host, self._volumes.attach(name, self._host), mib)
        assert self._volumes.detach(name, self._host)
        return found


@pytest.mark.parametrize(("storage_word", "format_", "other_word"), WALKS)
def test_a_volume_from_its_image_to_its_end(
    volumes: Volumes, place: Place, hv1: Host, storage_word: str, format_: str, other_word: str
) -> None:
    backend, other, walker = place(storage_word), place(other_word), Walker(volumes, hv1)
    image, first, second = stream(1, 4), stream(2, 6), stream(3, 2)

    with ImageFile(hv1, "golden.raw", seed=1, mib=4) as file:
        made = volumes.create_image(backend, "golden", hv1, file)
    assert (made["sha256"], made["size_bytes"]) == (file.sha256, 4 << 20)
    volume = volumes.create(backend, "disk", mib=8, source={"image": "golden"}, format=format_)
    assert (volume["format"], volume["size_bytes"], volume["source"]) == (format_, 8 << 20, "image golden")
    assert walker.digest("disk", 8) == digest_of(image, zeros(4))

    # Frozen, then changed: the snapshot and its clone keep what was, the volume's own clone has what is.
    walker.write("disk", 2, 6)
    frozen = volumes.snapshot("disk", "first")
    walker.write("disk", 3, 2)
    before, after = digest_of(first, zeros(2)), digest_of(second, first[2 << 20 :], zeros(2))
    volumes.clone("disk", "of-volume")
    volumes.create(backend, "of-snapshot", source={"snapshot": "disk/first"}, format=format_)
    assert walker.digest("of-volume", 8) == after
    assert walker.digest("of-snapshot", 8) == before
    volumes.revert("disk", "first")
    assert walker.digest("disk", 8) == before

    assert volumes.resize("disk", 16)["size_bytes"] == 16 << 20
    assert walker.digest("disk", 16) == digest_of(first, zeros(10))
    moved = volumes.migrate("disk", other)
    assert (moved["backend"], moved["size_bytes"]) == (other.name, 16 << 20)
    assert walker.digest("disk", 16) == digest_of(first, zeros(10))
    assert walker.digest("of-volume", 8) == after

    volumes.delete(
        "volumes/disk/snapshots/first", "volumes/disk", "volumes/of-volume", "volumes/of-snapshot", "images/golden"
    )
    assert volumes.all() == volumes.all("images") == []
    volumes.wait_for_events(f"volumes/{volume['id']}", EVENTS)
    volumes.wait_for_events(f"snapshots/{frozen['id']}", ["snapshot.created", "snapshot.deleted"])
    volumes.wait_for_events(f"images/{made['id']}", ["image.created", "image.deleted"])
