"""What a model repository was filled from: one record a network, beside what it tells of.

    model_repository/<network>/1/exported.json

`videofer export` writes it. A server offers the ensembles that it names; what needs to know which
weights are served reads it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from base import ROOT
from base.errors import FerError
from base.files import write_whole

FILENAME = "exported.json"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One network's export.

    Args:
        network: such as "fan".
        ensembles: of it that can be served.
        path: of its checkpoint, relative to the project where it lies there; "" if nobody says.
        options: that said of the checkpoint what its file does not.
        files: all that was written.
        made_of: a hash of the code, the weights and the options.
    """

    network: str
    ensembles: tuple[str, ...]
    path: str = ""
    options: dict[str, Any]
    files: tuple[str, ...]
    made_of: str = ""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's file."""
        return ROOT / self.path


def record_path(network: str, repository: Path) -> Path:
    """Where a network's record lies."""
    return repository / network / "1" / FILENAME


def write_record(record: Exported, repository: Path) -> None:
    """Write a record; the one before it is gone."""
    content = json.dumps(asdict(record), indent=1) + "\n"
    write_whole(record_path(record.network, repository), content.encode())


def read_record(network: str, repository: Path) -> Exported | None:
    """Read a network's record; None where it was not exported.

    Raises:
        FerError: for a file that is none of ours.
    """
    path = record_path(network, repository)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        lists = {name: tuple(map(str, content[name])) for name in ("ensembles", "files")}
        return Exported(**{**content, **lists})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FerError(f"{path} cannot be read ({error}); delete it, and export anew") from error


def read_records(repository: Path) -> list[Exported]:
    """Read every network's record, in the order of their names."""
    found = sorted(repository.glob(f"*/1/{FILENAME}"))
    records = (read_record(path.parents[1].name, repository) for path in found)
    return [record for record in records if record]
