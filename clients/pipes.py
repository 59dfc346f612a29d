"""Pipes for FFmpeg, which cannot go back in them.

bytes of a pipe  ->  readable  ->  what av.open takes: the pipe, or a file that was filled from it
"""

import shutil
import struct
from tempfile import TemporaryFile
from typing import IO

HEAD = 4096  # bytes that show whether an MP4's index comes first
# The boxes at the top of a file of the MP4 family (ISO/IEC 14496-12, QuickTime).
BOXES = (
    b"ftyp moov mdat wide free skip pnot moof mfra sidx ssix styp prft emsg meta uuid udta".split()
)


class Rejoined:
    """A pipe of which the head was read already."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self.head = head
        self.rest = rest

    def read(self, size: int = -1) -> bytes:
        """Read up to so many bytes; as soon as there are some."""
        if self.head:
            taken, self.head = (
                (self.head[:size], self.head[size:]) if size >= 0 else (self.head, b"")
            )
            return taken
        read1 = getattr(self.rest, "read1", self.rest.read)
        return read1(size)


def readable(pipe: IO[bytes]) -> IO[bytes] | Rejoined:
    """Prepare a pipe: an MP4 whose index comes last is kept in a file until it is closed."""
    head = pipe.read(HEAD)
    if not has_index_last(head):
        return Rejoined(head, pipe)
    kept = TemporaryFile()  # noqa: SIM115  closed with what reads it
    kept.write(head)
    shutil.copyfileobj(pipe, kept)
    kept.seek(0)
    return kept


def has_index_last(head: bytes) -> bool:
    """Tell an MP4 or MOV whose pictures come before its index, by its first bytes."""
    offset = 0
    while offset + 8 <= len(head):
        length, kind = struct.unpack_from(">I4s", head, offset)
        if kind == b"mdat":
            return True
        if kind not in BOXES or kind in (b"moov", b"moof") or length < 8:
            return False
        offset += length
    return False
