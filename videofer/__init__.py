"""The emotion of a face in a video, from a Triton server: the names that a Python user imports.

    import videofer

    result = videofer.analyse("clip.mp4", url="localhost:8001")
    print(result.emotion, result.weights)

`__all__` is the documented API. Every command is there too: `videofer.run("export", "--help")` does
what `videofer export --help` does. Importing this package loads nothing heavy; each name loads what
it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from base.errors import FerError
    from clients.errors import (
        ModelMissing,
        NoFaceFound,
        RequestRefused,
        ServerMismatch,
        ServerUnavailable,
        VideoUnreadable,
    )
    from clients.result import Result, Sighting
    from videofer.api import analyse, networks, serve
    from videofer.verbs import run

__version__ = "0.1.0"

__all__ = [
    "FerError",
    "ModelMissing",
    "NoFaceFound",
    "RequestRefused",
    "Result",
    "ServerMismatch",
    "ServerUnavailable",
    "Sighting",
    "VideoUnreadable",
    "analyse",
    "networks",
    "run",
    "serve",
]

HOMES = {
    **dict.fromkeys(("analyse", "networks", "serve"), "videofer.api"),
    **dict.fromkeys(("Result", "Sighting"), "clients.result"),
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
