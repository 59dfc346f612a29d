"""What every room builds on: errors, commands, files, and where a figure comes from.

    errors.py       one family: what a user can act on
    command.py      one parser head, and one way for a command to end
    files.py        files that are there whole or not at all
    exported.py     what model_repository/ was filled from
    provenance.py   which code, versions and machine

The standard library is all that these modules import.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Of Triton's containers. By default a plan runs only on the TensorRT that built it.
TRITON_RELEASE = "26.11"
