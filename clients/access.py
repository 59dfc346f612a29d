"""How a client is let in by a gateway: TLS, a token, headers.

--tls --ca ca.pem, $TRITON_TOKEN  ->  Access  ->  clients.transport.Connection
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from clients.errors import AccessRefused

LOCAL = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a gateway in front of the server wants to see.

    Args:
        tls: whether the connection is encrypted.
        ca: a PEM file of whoever signed the server's certificate; None for the usual authorities.
        cert, key: PEM files of the client's own certificate, where the gateway wants one.
        token: sent with every request as `authorization: Bearer <token>`.
        headers: sent with every request; names in lower case.

    Raises:
        AccessRefused: for files that cannot be read, a token in the clear, half of a certificate.
    """

    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        files = {"--ca": self.ca, "--cert": self.cert, "--key": self.key}
        given = {name: path for name, path in files.items() if path is not None}
        if given and not self.tls:
            raise AccessRefused(f"{' and '.join(given)} without --tls: nothing would be encrypted")
        if (self.cert is None) != (self.key is None):
            raise AccessRefused("--cert and --key go together: a certificate, and its private key")
        for name, path in given.items():
            if b"-----BEGIN " not in read(path, name):
                raise AccessRefused(f"{name} {path}: not a PEM file (-----BEGIN ...)")

    def check(self, url: str) -> None:
        """Refuse to send a token where others could read it on its way."""
        if self.token and not self.tls and url.rpartition(":")[0] not in LOCAL:
            raise AccessRefused(
                f"a token for {url} without --tls: others could read it on its way; add --tls"
            )

    @property
    def metadata(self) -> dict[str, str]:
        """What goes with every request."""
        bearer = {"authorization": f"Bearer {self.token}"} if self.token else {}
        return {**self.headers, **bearer}


def read(path: Path, name: str) -> bytes:
    """Read a small file that an option names."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise AccessRefused(f"{name} {path}: {error.strerror}") from error


def read_token(path: Path | None) -> str | None:
    """Read a token from a file, or else from $TRITON_TOKEN; None where there is neither.

    Raises:
        AccessRefused: for a file that is missing, empty, or that everyone may read.
    """
    if path is None:
        return checked(os.environ.get("TRITON_TOKEN", ""), "$TRITON_TOKEN") or None
    text = read(path, "--token-file").decode(errors="replace").strip()
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & stat.S_IROTH:
        raise AccessRefused(
            f"--token-file {path}: everyone on this machine may read it (mode {mode:03o}); "
            f"expected its owner alone: chmod 600"
        )
    if not text:
        raise AccessRefused(f"--token-file {path}: it is empty; expected a token")
    return checked(text, f"--token-file {path}")


def checked(token: str, name: str) -> str:
    """Refuse what no header can hold; the token itself is never told."""
    if not re.fullmatch(r"[\x21-\x7e]*", token):
        raise AccessRefused(f"{name}: expected one line of letters, digits and signs, no blanks")
    return token


def read_header(text: str) -> tuple[str, str]:
    """Read "x-team: vision".

    Raises:
        ValueError: for what is no header, and for a token: arguments can be seen by others.
    """
    name, separator, value = text.partition(":")
    name, value = name.strip().lower(), value.strip()
    if not separator or not re.fullmatch(r"[a-z0-9_.-]+", name):
        raise ValueError(f"{text!r}: expected <name>: <value>, such as 'x-team: vision'")
    if name == "authorization":
        raise ValueError("a token does not belong on a command line: $TRITON_TOKEN, --token-file")
    if not re.fullmatch(r"[\x20-\x7e]*", value) or name.startswith("grpc-"):
        raise ValueError(f"{text!r}: not a header that gRPC can send")
    return name, value
