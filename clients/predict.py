#!/usr/bin/env python3
"""`videofer predict`, by any Python and from any folder, in the environment of `make setup`."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
if not PYTHON.exists():
    sys.exit(f"predict.py: {PYTHON} is not there; run `make setup` in {ROOT}")
path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
# -P: modules of the folder it is run from must not stand in for ours.
command = [str(PYTHON), "-P", "-m", "videofer", "predict", *sys.argv[1:]]
os.execve(PYTHON, command, {**os.environ, "PYTHONPATH": path})
