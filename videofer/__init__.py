"""Who shows which emotion in a video, and when: the names that a Python user imports.

    import videofer

    analysis = videofer.analyse("clip.mp4", url="localhost:8001")
    for track in analysis.tracks:
        print(track.number, track.emotion, track.segments)

`__all__` is the documented API. Every command is there too: `videofer.run("export", "--help")` does
what `videofer export --help` does. Importing this package loads nothing heavy; each name loads what
it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from base.errors import FerError
    from clients.access import Access
    from clients.analysis import Analysis, ClipAnswer, Options, Segment, Track, Window
    from clients.errors import (
        AccessRefused,
        ModelMissing,
        NoFaceFound,
        NotWritten,
        RequestRefused,
        ResultsDiffer,
        ServerMismatch,
        ServerUnavailable,
        VideoUnreadable,
    )
    from clients.live import Live, Moment
    from clients.triton import TritonClient as Client
    from videofer.api import analyse, follow, networks, serve
    from videofer.verbs import run

__version__ = "0.1.0"

__all__ = [
    "Access",
    "AccessRefused",
    "Analysis",
    "Client",
    "ClipAnswer",
    "FerError",
    "Live",
    "ModelMissing",
    "Moment",
    "NoFaceFound",
    "NotWritten",
    "Options",
    "RequestRefused",
    "ResultsDiffer",
    "Segment",
    "ServerMismatch",
    "ServerUnavailable",
    "Track",
    "VideoUnreadable",
    "Window",
    "analyse",
    "follow",
    "networks",
    "run",
    "serve",
]

ANALYSIS = ("Analysis", "ClipAnswer", "Options", "Segment", "Track", "Window")
HOMES = {
    **dict.fromkeys(("analyse", "follow", "networks", "serve"), "videofer.api"),
    **dict.fromkeys(ANALYSIS, "clients.analysis"),
    **dict.fromkeys(("Live", "Moment"), "clients.live"),
    "Access": "clients.access",
    "Client": "clients.triton",
    "FerError": "base.errors",
    "run": "videofer.verbs",
}


def __getattr__(name: str) -> Any:
    """Load a name of `__all__` when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES.get(name, "clients.errors")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
