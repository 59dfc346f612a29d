"""What a network was last exported from, and whether that is what it would be exported from now.

Source + what was written  ->  record_of  ->  base.exported  ->  recall  ->  Source
"""

import hashlib
from dataclasses import asdict
from pathlib import Path

from base import ROOT
from base.exported import Exported, read_record
from export.calibrate import ranges_path
from networks.checkpoint import Checkpoint, Source, shipped

CODE = ("export", "networks")  # rooms whose code makes the graphs
OPTIONS = ("labels", "color", "variant", "prior")  # of Source, beside its path and network


def record_of(
    checkpoint: Checkpoint, source: Source | None, ensembles: list[str], files: list[Path]
) -> Exported:
    """Describe an export that was made now.

    Args:
        source: of the checkpoint; without it, nobody can tell later whether it is current.
        ensembles: that can be served.
        files: all that was written.
    """
    content = asdict(source) if source else {}
    return Exported(
        network=checkpoint.network,
        ensembles=tuple(ensembles),
        path=relative(source.path) if source else "",
        options={name: content[name] for name in OPTIONS if content.get(name)},
        files=tuple(map(relative, files)),
        made_of=hash_of(source) if source else "",
    )


def recall(network: str, repository: Path) -> Source | None:
    """Say what a network was last exported from; None where it was not, or nobody said."""
    record = read_record(network, repository)
    if not record or not record.path:
        return None
    options = {**record.options}
    if "labels" in options:
        options["labels"] = tuple(options["labels"])
    return Source(path=record.checkpoint, network=network, **options)


def recall_or_shipped(network: str, repository: Path) -> Source | None:
    """Say what a network was last exported from, else its shipped weights, if there are any."""
    own = Source(path=shipped(network), network=network) if shipped(network).is_file() else None
    return recall(network, repository) or own


def is_current(source: Source, network: str, repository: Path) -> bool:
    """Whether a network's last export is of this source, by this code, and whole."""
    record = read_record(network, repository)
    return (
        record is not None
        and record.made_of == hash_of(source)
        and all((ROOT / file).is_file() for file in record.files)
    )


def hash_of(source: Source) -> str:
    """Hash what decides an export: the code, the weights, their ranges, and the options."""
    code = (path for room in CODE for path in sorted((ROOT / room).glob("*.py")))
    options = {name: asdict(source)[name] for name in OPTIONS}
    digest = hashlib.sha256(repr(options).encode())
    for path in (*code, source.path, ranges_path(source.path), Path(source.prior or "")):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def relative(path: Path) -> str:
    """Write a path relative to the project, if it lies there."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
