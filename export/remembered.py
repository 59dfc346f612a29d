"""What `make export` was last told of each network: the rest of make goes on with it.

build/exported/<network>.json    the checkpoint, and the options that said what it does not
"""

import json
from dataclasses import asdict
from pathlib import Path

from export.checkpoint import Source, shipped
from export.errors import ExportError
from export.files import write_whole
from export.networks import NETWORKS


def remember(source: Source, network: str, build: Path) -> None:
    """Write down what a network was exported from."""
    content = {**asdict(source), "path": str(source.path.resolve()), "network": network}
    write_whole(file_of(network, build), (json.dumps(content, indent=1) + "\n").encode())


def recall(network: str, build: Path) -> Source | None:
    """Say what a network was last exported from; its shipped weights if never; None without any."""
    path = file_of(network, build)
    if not path.is_file():
        return Source(shipped(network), network) if shipped(network).is_file() else None
    try:
        content = json.loads(path.read_text())
        labels = tuple(content["labels"]) if content["labels"] else None
        return Source(**{**content, "path": Path(content["path"]), "labels": labels})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{path} cannot be read ({error}); delete it, and export anew") from error


def recall_all(build: Path) -> list[Source]:
    """Say what every network was last exported from, or is by default."""
    sources = (recall(network, build) for network in NETWORKS)
    return [source for source in sources if source]


def forget(network: str, build: Path) -> None:
    """Take it that a network was never exported."""
    file_of(network, build).unlink(missing_ok=True)


def file_of(network: str, build: Path) -> Path:
    """Where it is written down."""
    return build / "exported" / f"{network}.json"
