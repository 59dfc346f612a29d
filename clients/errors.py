"""What a user of the clients can meet and act on.

FerError
├── VideoUnreadable     the file is not a video, or a damaged one
├── NoFaceFound         a video, but nobody in it
├── AccessRefused       the gateway will not let the client in, or it cannot show what it must
├── ServerUnavailable   no server, or none that answers in time
├── ServerMismatch      a server, but not one of this contract
│   └── ModelMissing    a server that lacks the network, or a part of it
└── RequestRefused      the server would not take what it was sent
"""

from base.errors import FerError


class VideoUnreadable(FerError):
    """A file that is missing, not a video, cut off, or without frames."""


class NotWritten(FerError):
    """A result that cannot be written, for a full disk, say."""


class ResultsDiffer(FerError):
    """A results folder that holds something else than results of these sources."""


class NoFaceFound(FerError):
    """A video in which no looked-at frame shows a face."""


class AccessRefused(FerError):
    """A token, a certificate or a header that is missing, unreadable, or not accepted."""


class ServerUnavailable(FerError):
    """No server at the address, or none that answers in time."""


class ServerMismatch(FerError):
    """A server whose models are not of this project's contract."""


class ModelMissing(ServerMismatch):
    """A server that has no model of the name asked for."""


class RequestRefused(FerError):
    """A request that the server refused; trying again would not help."""
