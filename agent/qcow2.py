"""What a qcow2 says of itself, read without qemu-img: its size, whether it has its content in another file too or more than one
state of it, whether it is whole.

docs/interop/qcow2.txt of QEMU. Of a volume these bytes are written by the hypervisor and by whoever runs the storage, so
they are believed in nothing but what they say here.
"""

import os
import struct
import sys
from array import array

from agent.job_io import JobFault

#: Big-endian: magic, version, where the name of the backing file is, how long that is, bits of a cluster, virtual size.
_HEADER = struct.Struct(">4sIQIIQ")
_MAGIC = b"QFI\xfb"
#: From version 3 on: the features that a reader must know, and the one of them that the data are in another file.
_FEATURES_AT, _FEATURES_BYTES = 72, 8
_EXTERNAL_DATA = 1 << 2
#: Big-endian, from byte 36 on: entries of the L1 table and where it is, where the refcount table is and its clusters.
_TABLES = struct.Struct(">IQQI")
_TABLES_AT, _CLUSTER_BITS_AT, _ORDER_AT = 36, 20, 96
#: Big-endian, 4 bytes: how many internal snapshots it has.
_SNAPSHOTS_AT = 60
#: Other features that a reader must know: refcounts may be behind, entries of L2 tables are twice as long.
_DIRTY, _LONG_ENTRIES = 1 << 0, 1 << 4
#: What QEMU takes: bits of a cluster, the base-2 logarithm of a refcount's bits, bytes of the two tables.
_CLUSTER_BITS, _MAX_ORDER = range(9, 22), 6
_MAX_L1_BYTES, _MAX_REFCOUNT_TABLE_BYTES = 32 * 1024 * 1024, 8 * 1024 * 1024
#: Of an entry of L1 and L2 tables: where something is in the file; that it is compressed; that it reads as zeros all the same.
_OFFSET, _COMPRESSED, _ZERO = 0x00FFFFFFFFFFFE00, 1 << 62, 1 << 0
#: The refcount table says where blocks of refcounts are.
_BLOCK_OFFSET = ~0x1FF & (1 << 64) - 1


def is_qcow2(descriptor: int) -> bool:
    """Whether a whole header is there."""
    content = os.pread(descriptor, _HEADER.size, 0)
    return len(content) == _HEADER.size and content.startswith(_MAGIC)


def header_size(descriptor: int, shown: str, code: str) -> int:
    """Bytes that a VM sees, by the header. Raises JobFault of the code for what is no qcow2."""
    return int(_HEADER.unpack_from(_header(descriptor, shown, code))[5])


def refuse_references(descriptor: int, shown: str, code: str) -> None:
    """Raises JobFault backing_file for one that refers to another file; of the code for what is no qcow2."""
    content = _header(descriptor, shown, code)
    version, backing_at = _HEADER.unpack_from(content)[1:3]
    if backing_at:
        raise JobFault("backing_file", f"{shown} has a backing file")
    features = int.from_bytes(content[_FEATURES_AT : _FEATURES_AT + _FEATURES_BYTES], "big") if version >= 3 else 0
    if features & _EXTERNAL_DATA:
        raise JobFault("backing_file", f"{shown} has its data in another file")


def refuse_snapshots(descriptor: int, shown: str, code: str) -> None:
    """Raises JobFault unsupported for one with internal snapshots: what reads it as a VM does would leave them out without a word;
    of the code for what is no qcow2.
    """
    count = int.from_bytes(_header(descriptor, shown, code)[_SNAPSHOTS_AT : _SNAPSHOTS_AT + 4], "big")
    if count:
        raise JobFault(
            "unsupported",
            f"{shown} has {count} internal {'snapshot' if count == 1 else 'snapshots'}, which no copy would have",
            remedy="Delete them (qemu-img snapshot -l names them, -d deletes one), or flatten the image (qemu-img convert)",
        )


def refuse_cut(descriptor: int, shown: str, code: str) -> None:
    """Raises JobFault of the code where the file ends before what is in use of it, which would read as zeros without a word.

    Only what lies behind the end as a whole counts: a last cluster may be there in part. Of a file that is written meanwhile
    never too much is said, for QEMU writes data before it refers to them.
    """
    image = _Image(descriptor, shown, code)
    image.refuse_tables_behind(os.fstat(descriptor).st_size)
    # Refcounts are a few clusters to read, whatever the image's size. They may be too high after a crash, so they only acquit.
    if not image.is_dirty and image.counted_end() <= os.fstat(descriptor).st_size:
        return
    if image.has_more_than(os.fstat(descriptor).st_size):
        raise JobFault(
            code, f"{shown} has been cut short: it has only {os.fstat(descriptor).st_size} bytes of its file"
        )


class _Image:
    """The tables of a qcow2. Raises JobFault of the code for numbers that QEMU would refuse."""

    def __init__(self, descriptor: int, shown: str, code: str) -> None:
        self._descriptor, self._shown, self._code = descriptor, shown, code
        content = _header(descriptor, shown, code).ljust(_ORDER_AT + 4, b"\0")
        bits, version = (int.from_bytes(content[at : at + 4], "big") for at in (_CLUSTER_BITS_AT, 4))
        features = int.from_bytes(content[_FEATURES_AT : _FEATURES_AT + _FEATURES_BYTES], "big") if version >= 3 else 0
        order = int.from_bytes(content[_ORDER_AT : _ORDER_AT + 4], "big") if version >= 3 else 4
        l1_entries, self._l1_at, self._counts_at, clusters = _TABLES.unpack_from(content, _TABLES_AT)
        is_right = bits in _CLUSTER_BITS and order <= _MAX_ORDER and l1_entries * 8 <= _MAX_L1_BYTES
        if not is_right or clusters << bits > _MAX_REFCOUNT_TABLE_BYTES:
            raise JobFault(code, f"the header of {shown} has numbers that no qcow2 has")
        self.is_dirty = bool(features & _DIRTY)
        self._cluster_bytes, self._order = 1 << bits, order
        self._l1_bytes, self._counts_bytes = l1_entries * 8, clusters << bits
        self._step = 2 if features & _LONG_ENTRIES else 1
        # Of a compressed cluster: the lower bits of its entry.
        self._compressed_offset = (1 << (62 - (bits - 8))) - 1

    def refuse_tables_behind(self, size_bytes: int) -> None:
        """Raises JobFault where the file ends before the table of tables does, of which QEMU reads what is missing as zeros."""
        if (
            self._l1_bytes
            and self._l1_at + self._l1_bytes > -(-size_bytes // self._cluster_bytes) * self._cluster_bytes
        ):
            raise JobFault(self._code, f"{self._shown} has been cut short: it has only {size_bytes} bytes of its file")

    def counted_end(self) -> int:
        """Where the last cluster that is counted as in use begins, or a block of counts that is farther behind; one byte more."""
        blocks = self._numbers(self._counts_at, self._counts_bytes)
        end: int = self._counts_at + 1
        if blocks:
            end = max(end, (max(blocks) & _BLOCK_OFFSET) + 1)
        counts_in_block = (self._cluster_bytes * 8) >> self._order
        for number in range(len(blocks) - 1, -1, -1):
            if blocks[number]:
                counts = os.pread(self._descriptor, self._cluster_bytes, blocks[number] & _BLOCK_OFFSET).rstrip(b"\0")
                if counts:
                    # Of counts below a byte the last one of that byte is taken, which is farther behind if anything.
                    last = (len(counts) * 8 - 1) >> self._order
                    return max(end, (number * counts_in_block + last) * self._cluster_bytes + 1)
        return end

    def has_more_than(self, size_bytes: int) -> bool:
        """Whether a table, or a cluster that holds data, begins at that size or behind it."""
        if self._l1_bytes and self._l1_at + self._l1_bytes > size_bytes:
            return True
        tables = {entry & _OFFSET for entry in self._numbers(self._l1_at, self._l1_bytes)} - {0}
        return any(table >= size_bytes for table in tables) or any(
            self._begins_at(entry) >= size_bytes
            for table in sorted(tables)
            for entry in self._numbers(table, self._cluster_bytes)[:: self._step]
            if entry
        )

    def _begins_at(self, entry: int) -> int:
        """Where the cluster of an L2 entry is; -1 for none, and for one whose content is zeros whatever is there."""
        if entry & _COMPRESSED:
            return entry & self._compressed_offset
        return -1 if entry & _ZERO else entry & _OFFSET

    def _numbers(self, begin: int, count_bytes: int) -> "array[int]":
        """Numbers of 64 bits, as many as are there."""
        content = os.pread(self._descriptor, count_bytes, begin)
        numbers = array("Q", content[: len(content) // 8 * 8])
        if sys.byteorder == "little":
            numbers.byteswap()
        return numbers


def _header(descriptor: int, shown: str, code: str) -> bytes:
    if not is_qcow2(descriptor):
        raise JobFault(code, f"{shown} is no qcow2 image")
    return os.pread(descriptor, _ORDER_AT + 4, 0)
