"""What the first bytes of a qcow2 say, read without qemu-img: its size, and whether it has its content in another file too.

docs/interop/qcow2.txt of QEMU. Of a volume these bytes are written by the hypervisor and by whoever runs the storage, so
they are believed in nothing but what they say here.
"""

import os
import struct

from agent.job_io import JobFault

#: Big-endian: magic, version, where the name of the backing file is, how long that is, bits of a cluster, virtual size.
_HEADER = struct.Struct(">4sIQIIQ")
_MAGIC = b"QFI\xfb"
#: From version 3 on: the features that a reader must know, and the one of them that the data are in another file.
_FEATURES_AT, _FEATURES_BYTES = 72, 8
_EXTERNAL_DATA = 1 << 2


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


def _header(descriptor: int, shown: str, code: str) -> bytes:
    if not is_qcow2(descriptor):
        raise JobFault(code, f"{shown} is no qcow2 image")
    return os.pread(descriptor, _FEATURES_AT + _FEATURES_BYTES, 0)
