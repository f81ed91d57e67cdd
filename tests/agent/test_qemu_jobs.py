"""Images by the real qemu-img: what is refused, what comes out, and how its failures are told."""

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent import qemu_img, qemu_jobs
from agent.job_io import JobFault, identity_of, opened, read_progress
from agent.jobs import JOBS
from tests.agent.mounting import needs_root, tmpfs
from tests.agent.test_file_jobs import files_no_longer_than
from tests.agent.volume_files import (
    MIB,
    OTHER,
    content_of,
    extent,
    fault_of,
    holder,
    needs_qemu,
    path_of,
    qcow2_of,
    qemu,
    write_file,
)
from tests.agent.waiting import until
from tests.processes import runs

pytestmark = needs_qemu
CONTENT = b"".join(bytes([number]) * 70_144 for number in range(1, 30)) + bytes(MIB)


def image_args(path: Path, image_format: str, **more: Any) -> dict[str, Any]:
    return {
        "folder": str(path.parent),
        "name": path.name,
        "format": image_format,
        "sha256": "",
        "digested": [],
        "progress": "",
        **more,
    }


def inspected_size(args: dict[str, Any]) -> int:
    return int(qemu_jobs.inspect_image(args)["size_bytes"])


def test_inspect_raw_image_is_its_length_in_whole_sectors(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for length, size in ((512, 512), (513, 1024), (1, 512)):
        path.write_bytes(b"x" * length)
        assert inspected_size(image_args(path, "raw")) == size


def test_inspect_qcow2_image_is_what_a_vm_sees(tmp_path: Path) -> None:
    for options in ("compat=1.1", "compat=0.10"):
        qemu("create", "-f", "qcow2", "-o", options, tmp_path / "image", 5 * MIB)
        assert inspected_size(image_args(tmp_path / "image", "qcow2")) == 5 * MIB


def test_inspect_image_with_its_digest_reports_progress(tmp_path: Path) -> None:
    path, progress = tmp_path / "image", tmp_path / "progress"
    path.write_bytes(CONTENT)
    args = image_args(path, "raw", sha256=hashlib.sha256(CONTENT).hexdigest(), progress=str(progress))
    assert inspected_size(args) == len(CONTENT)
    assert read_progress(progress) == (len(CONTENT), len(CONTENT))


def test_inspect_image_whose_digest_was_seen_is_not_read_twice_unless_it_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    args = image_args(path, "raw", sha256=hashlib.sha256(CONTENT).hexdigest())
    args["digested"] = qemu_jobs.inspect_image(args)["identity"]
    (tmp_path / "next").write_bytes(CONTENT[::-1])
    with monkeypatch.context() as patch:
        patch.setattr(qemu_jobs, "_digest", None)
        assert qemu_jobs.inspect_image(args)["identity"] == args["digested"]
    os.rename(tmp_path / "next", path)
    assert fault_of(qemu_jobs.inspect_image, args).code == "wrong_digest"


def test_inspect_image_that_is_changed_while_it_is_read_is_source_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(0, 0))
    digest = qemu_jobs._digest  # pyright: ignore[reportPrivateUsage]

    def write_behind(*args: Any) -> str:
        found = digest(*args)
        path.write_bytes(CONTENT[::-1])
        return found

    monkeypatch.setattr(qemu_jobs, "_digest", write_behind)
    args = image_args(path, "raw", sha256=hashlib.sha256(CONTENT).hexdigest())
    fault = fault_of(qemu_jobs.inspect_image, args)
    assert (fault.code, "changed" in str(fault)) == ("source_unreadable", True)


@pytest.mark.parametrize("compat", ["1.1", "0.10"])
def test_inspect_qcow2_image_with_snapshots_of_its_own_is_unsupported(compat: str, tmp_path: Path) -> None:
    qemu("create", "-f", "qcow2", "-o", f"compat={compat}", tmp_path / "image", MIB)
    for name in ("one", "two"):
        qemu("snapshot", "-c", name, tmp_path / "image")
    fault = fault_of(qemu_jobs.inspect_image, image_args(tmp_path / "image", "qcow2"))
    assert (fault.code, "2 internal snapshots" in str(fault)) == ("unsupported", True)
    assert "qemu-img convert" in fault.answer()["remedy"]


def test_inspect_image_with_another_digest_names_both_and_parses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"no image")
    monkeypatch.setattr(qemu_jobs, "checked_size", None)
    fault = fault_of(qemu_jobs.inspect_image, image_args(path, "qcow2", sha256="0" * 64))
    assert fault.code == "wrong_digest"
    assert "0" * 64 in str(fault) and hashlib.sha256(b"no image").hexdigest() in str(fault)


@pytest.mark.parametrize("backing_format", ["raw", "qcow2"])
def test_inspect_qcow2_image_with_a_backing_file_is_refused(backing_format: str, tmp_path: Path) -> None:
    qemu("create", "-f", backing_format, tmp_path / "base", MIB)
    qemu("create", "-f", "qcow2", "-b", tmp_path / "base", "-F", backing_format, tmp_path / "image")
    fault = fault_of(qemu_jobs.inspect_image, image_args(tmp_path / "image", "qcow2"))
    assert fault.code == "backing_file"


def test_inspect_qcow2_image_with_its_data_elsewhere_is_refused(tmp_path: Path) -> None:
    qemu("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", tmp_path / "image", MIB)
    fault = fault_of(qemu_jobs.inspect_image, image_args(tmp_path / "image", "qcow2"))
    assert fault.code == "backing_file"


def test_inspect_qcow2_image_that_is_encrypted_is_source_unreadable(tmp_path: Path) -> None:
    secret = ("--object", "secret,id=key,data=secret")
    # Not luks, which first measures how fast this machine is, and gives up on a busy one.
    options = "encrypt.format=aes,encrypt.key-secret=key"
    qemu("create", *secret, "-f", "qcow2", "-o", options, tmp_path / "image", MIB)
    fault = fault_of(qemu_jobs.inspect_image, image_args(tmp_path / "image", "qcow2"))
    assert (fault.code, "encrypted" in str(fault)) == ("source_unreadable", True)


@pytest.mark.parametrize("content", [b"", b"x" * 4096, b"QFI\xfb", b"QFI\xfb" + bytes(4096)])
def test_inspect_qcow2_image_that_is_none_is_source_unreadable(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(content)
    fault = fault_of(qemu_jobs.inspect_image, image_args(tmp_path / "image", "qcow2"))
    assert fault.code == "source_unreadable"
    assert "/proc/" not in str(fault) and str(tmp_path / "image") in str(fault)


def test_inspect_qcow2_image_of_no_bytes_is_source_unreadable(tmp_path: Path) -> None:
    qemu("create", "-f", "qcow2", tmp_path / "image", 0)
    assert fault_of(qemu_jobs.inspect_image, image_args(tmp_path / "image", "qcow2")).code == "source_unreadable"


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_inspect_image_with_another_name_is_source_unreadable(image_format: str, tmp_path: Path) -> None:
    qemu("create", "-f", image_format, tmp_path / "image", MIB)
    os.link(tmp_path / "image", tmp_path / "other")
    fault = fault_of(qemu_jobs.inspect_image, image_args(tmp_path / "image", image_format))
    assert (fault.code, "another name" in str(fault)) == ("source_unreadable", True)


@pytest.mark.parametrize(
    "options",
    ["compat=1.1", "compat=0.10", "cluster_size=4096", "extended_l2=on", "refcount_bits=1", "preallocation=metadata"],
)
@pytest.mark.parametrize("is_compressed", [False, True])
def test_inspect_qcow2_image_that_was_cut_short_is_source_unreadable(
    is_compressed: bool, options: str, tmp_path: Path
) -> None:
    (tmp_path / "content").write_bytes(random.Random(1).randbytes(4 * MIB))
    # Compressed clusters are not made where there are some already.
    packed = ["-c"] if is_compressed and "preallocation" not in options else []
    where = (tmp_path / "content", tmp_path / "image")
    qemu("convert", *packed, "-f", "raw", "-O", "qcow2", "-o", options, *where)
    args = image_args(tmp_path / "image", "qcow2")
    assert inspected_size(args) == 4 * MIB
    os.truncate(tmp_path / "image", 3 * MIB)
    fault = fault_of(qemu_jobs.inspect_image, args)
    assert (fault.code, "cut short" in str(fault)) == ("source_unreadable", True)


def test_inspect_qcow2_image_whose_first_table_lies_behind_its_end_is_cut_short(tmp_path: Path) -> None:
    """QEMU reads all of it as zeros, without a word."""
    args = image_args(tmp_path / "image", "qcow2")
    (tmp_path / "content").write_bytes(CONTENT)
    qemu("convert", "-f", "raw", "-O", "qcow2", tmp_path / "content", tmp_path / "image")
    with open(tmp_path / "image", "r+b") as image:
        image.seek(40)
        image.write((1 << 40).to_bytes(8, "big"))
    fault = fault_of(qemu_jobs.inspect_image, args)
    assert (fault.code, "cut short" in str(fault)) == ("source_unreadable", True)


def test_failure_is_what_the_tool_says_last() -> None:
    """Of a create that failed it tells first that it could not take away what it had begun."""
    said = "qemu-img: Error when deleting file '/proc/self/fd/3': Operation not permitted\nqemu-img: the image: Cannot allocate memory\n"
    assert qemu_img.Run(1, "", said).errno == errno.ENOMEM


def test_inspect_image_that_is_absent_is_source_unreadable(tmp_path: Path) -> None:
    assert fault_of(qemu_jobs.inspect_image, image_args(tmp_path / "no", "raw")).code == "source_unreadable"


def test_inspect_raw_image_that_looks_like_qcow2_is_raw(tmp_path: Path) -> None:
    """The format is the caller's word; a guest may write any header into its disk."""
    qemu("create", "-f", "qcow2", tmp_path / "image", 5 * MIB)
    size = (tmp_path / "image").stat().st_size
    assert inspected_size(image_args(tmp_path / "image", "raw")) == -(-size // 512) * 512


def convert(source: dict[str, Any], target: dict[str, Any], progress: Path | None = None) -> dict[str, Any]:
    return qemu_jobs.convert_image({"source": source, "target": target, "progress": str(progress or "")})


def compare(source: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
    return qemu_jobs.compare_images({"source": source, "target": target, "progress": ""})


def source_of(backend: Path, image_format: str, content: bytes = CONTENT) -> dict[str, Any]:
    of = extent(backend, OTHER, len(content), image_format)
    path_of(of).parent.mkdir(exist_ok=True)
    if image_format == "raw":
        path_of(of).write_bytes(content)
    else:
        qcow2_of(path_of(of), content, backend)
    return of


@pytest.mark.parametrize("from_format", ["raw", "qcow2"])
@pytest.mark.parametrize("to_format", ["raw", "qcow2"])
@pytest.mark.parametrize("is_repeat", [False, True])
def test_convert_image_has_the_content_and_zeros_behind_it(
    from_format: str, to_format: str, is_repeat: bool, tmp_path: Path
) -> None:
    source = source_of(tmp_path, from_format)
    target = extent(tmp_path, size_bytes=len(CONTENT) + 8 * MIB, image_format=to_format)
    # What a copy that was killed left: other bytes, and more of them.
    write_file(target, b"y" * 16 * MIB if is_repeat else b"")
    assert convert(source, target, tmp_path / "progress") == {"done_bytes": len(CONTENT)}
    assert read_progress(tmp_path / "progress") == (len(CONTENT), len(CONTENT))
    assert content_of(path_of(target), to_format, tmp_path) == CONTENT + bytes(8 * MIB)
    assert path_of(target).stat().st_blocks * 512 < len(CONTENT) + MIB
    assert compare(source, target) == {"done_bytes": target["size_bytes"]}


def test_convert_image_with_a_backing_file_is_refused_and_the_target_left(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s" * MIB)
    source, target = extent(tmp_path, OTHER, image_format="qcow2"), extent(tmp_path)
    write_file(target, b"as it was")
    qemu("create", "-f", "qcow2", "-b", tmp_path / "secret", "-F", "raw", path_of(source))
    fault = fault_of(qemu_jobs.convert_image, {"source": source, "target": target, "progress": ""})
    assert fault.code == "backing_file"
    assert path_of(target).read_bytes() == b"as it was"


def test_convert_image_to_raw_that_got_a_qcow2_header_reads_it_as_raw(tmp_path: Path) -> None:
    """A guest wrote a header that names a file of this host into its raw disk."""
    (tmp_path / "secret").write_bytes(b"s" * MIB)
    source, target = extent(tmp_path, OTHER), extent(tmp_path, image_format="qcow2", size_bytes=4 * MIB)
    write_file(target)
    qemu("create", "-f", "qcow2", "-b", tmp_path / "secret", "-F", "raw", path_of(source))
    written = path_of(source).read_bytes()
    convert(source, target)
    assert content_of(path_of(target), "qcow2", tmp_path)[: len(written)] == written


def test_convert_image_with_snapshots_of_its_own_is_refused_and_the_target_left(tmp_path: Path) -> None:
    source, target = source_of(tmp_path, "qcow2"), extent(tmp_path, size_bytes=len(CONTENT))
    write_file(target, b"as it was")
    qemu("snapshot", "-c", "before", path_of(source))
    fault = fault_of(qemu_jobs.convert_image, {"source": source, "target": target, "progress": ""})
    assert fault.code == "unsupported"
    assert path_of(target).read_bytes() == b"as it was"


def test_convert_image_that_is_another_than_was_seen_is_refused_and_the_target_left(tmp_path: Path) -> None:
    source, target = source_of(tmp_path, "qcow2"), extent(tmp_path, size_bytes=len(CONTENT))
    source["identity"] = seen(source)
    write_file(target, b"as it was")
    qcow2_of(path_of(source), CONTENT, tmp_path)
    fault = fault_of(qemu_jobs.convert_image, {"source": source, "target": target, "progress": ""})
    assert (fault.code, "changed" in str(fault)) == ("source_unreadable", True)
    assert path_of(target).read_bytes() == b"as it was"


def test_convert_image_that_is_changed_meanwhile_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = source_of(tmp_path, "qcow2"), extent(tmp_path, size_bytes=len(CONTENT))
    source["identity"] = seen(source)
    write_file(target)
    run = qemu_img.run

    def write_behind(arguments: list[str], *more: Any, **named: Any) -> qemu_img.Run:
        ran = run(arguments, *more, **named)
        os.utime(path_of(source), ns=(0, 0))
        return ran

    assert convert(source, target) == {"done_bytes": len(CONTENT)}
    monkeypatch.setattr(qemu_img, "run", write_behind)
    fault = fault_of(qemu_jobs.convert_image, {"source": source, "target": target, "progress": ""})
    assert (fault.code, "changed" in str(fault)) == ("source_unreadable", True)


def seen(of: dict[str, Any]) -> list[int]:
    with opened(of, os.O_RDONLY) as descriptor:
        return identity_of(descriptor)


def test_convert_image_that_is_larger_than_the_target_is_wrong_size(tmp_path: Path) -> None:
    source, target = source_of(tmp_path, "qcow2"), extent(tmp_path)
    write_file(target)
    fault = fault_of(qemu_jobs.convert_image, {"source": source, "target": target, "progress": ""})
    assert fault.code == "wrong_size"


def test_convert_image_into_a_file_that_another_process_writes_is_in_use(tmp_path: Path) -> None:
    source, target = source_of(tmp_path, "qcow2"), extent(tmp_path, size_bytes=len(CONTENT))
    with holder(write_file(target, b"as it was")):
        fault = fault_of(qemu_jobs.convert_image, {"source": source, "target": target, "progress": ""})
    assert fault.code == "in_use"
    assert path_of(target).read_bytes() == b"as it was"


@pytest.mark.parametrize("place", ["source", "target"])
def test_convert_image_at_a_planted_link_touches_nothing(place: str, tmp_path: Path) -> None:
    source, target = source_of(tmp_path, "qcow2"), extent(tmp_path, size_bytes=len(CONTENT))
    write_file(target)
    (tmp_path / "victim").write_bytes(b"precious")
    planted = path_of(source if place == "source" else target)
    planted.unlink()
    planted.symlink_to(tmp_path / "victim")
    fault = fault_of(qemu_jobs.convert_image, {"source": source, "target": target, "progress": ""})
    assert (fault.code, "symbolic link" in str(fault)) == ("foreign_data", True)
    assert (tmp_path / "victim").read_bytes() == b"precious"


@needs_root
def test_convert_image_that_would_fill_the_file_system_is_no_space_and_leaves_the_target(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with tmpfs(place, "size=1m"):
        source, target = source_of(tmp_path, "raw"), extent(place, size_bytes=len(CONTENT), image_format="qcow2")
        write_file(target, b"as it was")
        fault = fault_of(qemu_jobs.convert_image, {"source": source, "target": target, "progress": ""})
        assert (fault.code, str(path_of(target)) in str(fault)) == ("no_space", True)
        assert path_of(target).read_bytes() == b"as it was"


def test_convert_image_that_finds_no_room_fails(tmp_path: Path) -> None:
    source, target = source_of(tmp_path, "qcow2"), extent(tmp_path, size_bytes=len(CONTENT), image_format="qcow2")
    write_file(target)
    with files_no_longer_than(MIB), pytest.raises(OSError) as caught:
        convert(source, target)
    assert caught.value.errno in (errno.EFBIG, errno.EINVAL)


@pytest.mark.parametrize("at", [0, len(CONTENT) - 1, len(CONTENT)])
def test_compare_images_that_differ_is_an_io_error(at: int, tmp_path: Path) -> None:
    """Also behind the source's end, where zeros must be."""
    source = source_of(tmp_path, "qcow2")
    target = extent(tmp_path, size_bytes=len(CONTENT) + MIB)
    convert(source, write_target(target))
    with open(path_of(target), "r+b") as file:
        file.seek(at)
        file.write(b"!")
    with pytest.raises(OSError, match="differs") as caught:
        compare(source, target)
    assert caught.value.errno == errno.EIO


def write_target(target: dict[str, Any]) -> dict[str, Any]:
    write_file(target)
    return target


def test_compare_images_of_which_the_copy_is_shorter_is_an_io_error(tmp_path: Path) -> None:
    source, target = source_of(tmp_path, "qcow2"), extent(tmp_path)
    write_file(target, CONTENT[:-512])
    with pytest.raises(OSError, match="shorter") as caught:
        compare(source, target)
    assert caught.value.errno == errno.EIO


def test_blank_image_holds_nothing_whatever_was_in_it(tmp_path: Path) -> None:
    target = source_of(tmp_path, "qcow2")
    assert qemu_jobs.blank_image({"target": target, "progress": ""}) == {}
    assert content_of(path_of(target), "qcow2", tmp_path) == bytes(len(CONTENT))
    assert path_of(target).stat().st_blocks * 512 < MIB


@pytest.mark.parametrize(
    ("stderr", "number"),
    [
        ("qemu-img: error while writing at byte 0: No space left on device\n", errno.ENOSPC),
        ("qemu-img: error while writing at byte 0: Disk quota exceeded\n", errno.EDQUOT),
        ("qemu-img: error while reading at byte 0: Input/output error\n", errno.EIO),
        ("qemu-img: Could not open 'x': Read-only file system\n", errno.EROFS),
        ("qemu-img: Could not open '/proc/self/fd/5': Permission denied\n", errno.EACCES),
        ("qemu-img: Could not open '/proc/self/fd/5': Stale file handle\n", errno.ESTALE),
        (
            "qemu-img: Could not open 'x': Failed to get \"write\" lock\nIs another process using the image [x]?\n",
            errno.EBUSY,
        ),
        ('qemu-img: Failed to get shared "consistent read" lock\n', errno.EBUSY),
        ("qemu-img: Failed to lock byte 100: No locks available\n", errno.ENOLCK),
        ("qemu-img: Unknown protocol\n", errno.EINVAL),
    ],
)
def test_run_that_failed_tells_the_errno_of_its_words(stderr: str, number: int) -> None:
    with pytest.raises(OSError) as caught:
        qemu_img.Run(1, "", stderr).refuse_failure("vm.raw")
    assert (caught.value.errno, caught.value.filename) == (number, "vm.raw")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            qemu_img.Run(1, "", "qemu-img: Could not open '/proc/self/fd/5': Image is not in qcow2 format\n"),
            "Could not open the image Image is not in qcow2 format",
        ),
        (
            qemu_img.Run(1, "", 'qemu-img: Could not open \'json:{"a": {"b": 1}}\': Bad\n'),
            "Could not open the image Bad",
        ),
        (qemu_img.Run(-24, "", "half a"), "it ended with -24"),
        (qemu_img.Run(1, "", ""), "it ended with 1"),
    ],
)
def test_run_that_failed_has_words_without_names_that_nobody_knows(run: qemu_img.Run, words: str) -> None:
    assert run.words == words


def test_run_without_the_tool_is_tool_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_img, "_PATH", "/nowhere")
    with pytest.raises(JobFault) as caught:
        qemu_img.run(["--version"], ())
    assert (caught.value.code, caught.value.answer()["tool"]) == ("tool_missing", "qemu-img")


def test_run_with_limits_is_ended_by_them() -> None:
    run = qemu_img.run(["--version"], (), limits=qemu_img.Limits(memory_bytes=8 * MIB, processor_s=30))
    assert run.exit_code != 0


def test_run_that_writes_much_flushes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_img, "_FLUSH_EVERY_BYTES", 1)
    monkeypatch.setattr(qemu_img, "_LOOK_EVERY_MS", 0)
    flushed: list[int] = []
    monkeypatch.setattr("os.fdatasync", flushed.append)
    target = write_target(extent(tmp_path, size_bytes=len(CONTENT)))
    convert(source_of(tmp_path, "qcow2"), target)
    assert flushed


def test_run_whose_flush_fails_is_ended_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_img, "_FLUSH_EVERY_BYTES", 1)
    monkeypatch.setattr(qemu_img, "_LOOK_EVERY_MS", 0)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    # The tool may have ended before it was looked at once; then the end's own flush meets the disk.
    monkeypatch.setattr("os.fdatasync", fail)
    monkeypatch.setattr("os.fsync", fail)
    target = write_target(extent(tmp_path, size_bytes=len(CONTENT)))
    with pytest.raises(OSError) as caught:
        convert(source_of(tmp_path, "qcow2"), target)
    assert caught.value.errno == errno.EIO
    assert not [name for name in os.listdir("/proc") if name.isdigit() and _is_on(name, path_of(target))]


def _is_on(pid: str, path: Path) -> bool:
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return int(pid) != os.getpid() and str(path) in links


def start_python(words: str, *argv: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-S", "-c", words, *argv], stdout=subprocess.PIPE)


async def test_run_dies_with_its_worker(tmp_path: Path) -> None:
    """As when the worker is killed amid a copy."""
    words = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from agent import qemu_img\n"
        "qemu_img._TOOL, qemu_img._PATH = 'sleep', '/usr/bin:/bin'\n"
        "print(os.getpid(), flush=True)\n"
        "qemu_img.run(['600'], ())\n"
    )
    root = str(Path(qemu_img.__file__).parents[1])
    worker = start_python(words, root)
    assert worker.stdout is not None
    worker.stdout.readline()
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
    await until(lambda: children.read_text().split())
    child = int(children.read_text().split()[0])
    worker.send_signal(signal.SIGKILL)
    worker.stdout.close()
    worker.wait(10)
    await until(lambda: not runs(child))


def test_progress_between_two_percents_is_what_was_moved() -> None:
    estimate = qemu_img._Estimate(1000 * MIB)  # pyright: ignore[reportPrivateUsage]
    told = b"    (0.00/100%)\r"
    assert estimate.done_bytes(b"", 0) == 0
    assert estimate.done_bytes(told, 4 * MIB) == 2 * MIB
    # No further than the next percent, which is not told yet.
    assert estimate.done_bytes(told, 100 * MIB) == 10 * MIB
    told += b"    (1.00/100%)\r"
    assert estimate.done_bytes(told, 100 * MIB) == 10 * MIB
    assert estimate.done_bytes(told, 102 * MIB) == 11 * MIB
    assert estimate.done_bytes(told + b"    (100.00/100%)\r", 102 * MIB) == 1000 * MIB - 1


def test_jobs_on_images_are_among_the_workers_jobs() -> None:
    assert all(JOBS[job.__name__] is job for job in qemu_jobs.QEMU_JOBS)
