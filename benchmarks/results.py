"""Where results are written, build/benchmarks/<date>-<commit>-<host>/, each with its origin.

What is worth keeping is moved to benchmarks/results/, which git keeps.
"""

import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclient.utils import InferenceServerException

from base import ROOT
from base.files import write_whole
from base.provenance import provenance
from serving import ServingError

RESULTS = ROOT / "build" / "benchmarks"
KEPT = ROOT / "benchmarks" / "results"


def results_folder(host: str | None = None) -> Path:
    """Name this run's folder.

    Args:
        host: what to call the machine; default: its name.
    """
    git = ["git", "rev-parse", "--short=8", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    name = re.sub(r"[^\w.-]", "_", host or platform.node())
    return RESULTS / f"{time.strftime('%Y-%m-%d')}-{commit or 'unknown'}-{name}"


@contextmanager
def refusals_told() -> Iterator[None]:
    """Tell a refusal of Triton's as one of the errors that a command ends with."""
    try:
        yield
    except InferenceServerException as error:
        raise ServingError(f"Triton refused: {error.message()}") from error


def write_report(path: Path, title: str, sections: list[str], *packages: str) -> str:
    """Write a Markdown report that begins with where its figures come from; give its text.

    Args:
        sections: Markdown, one after the other.
        packages: those whose versions matter.
    """
    text = "\n\n".join([f"# {title}", f"{provenance(*packages)}.", *sections]) + "\n"
    write_whole(path, text.encode())
    return text
