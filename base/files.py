"""Writing files that others may read at any moment; needs the standard library alone."""

import os
from contextlib import suppress
from pathlib import Path
from zlib import crc32

from base.errors import FerError


def partial_of(path: Path) -> Path:
    """Name what a file is written under until it is whole: short, hidden, and this process's own.

    A file's own name may be as long as a name can be, and two runs may write the same file.
    """
    return path.with_name(f".{os.getpid()}-{crc32(os.fsencode(path.name)):08x}.partial")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        FerError: for a full disk, say.
    """
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise FerError(f"{path} cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
