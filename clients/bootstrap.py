"""Goes on with a command that was run by its path, or by a Python without its packages.

    clients/predict.py video.mp4            ->  .venv/bin/python -P -m clients.predict video.mp4
    python3 -m clients.predict video.mp4    ->  the same

Any Python may run this file, so it needs nothing of ours and nothing that is installed.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
PACKAGES = ("cv2", "numpy", "onnx", "onnxruntime", "tqdm", "tritonclient")


def go_on_as_module(file: str, package: str | None) -> None:
    """Become the module that a file of this folder is, in the environment of `make setup`.

    Args:
        package: `__package__` of the file as it is run now: there, where all it needs is, it stays.
    """
    name = Path(file).stem
    missing = [package for package in PACKAGES if not find_spec(package)]
    if package and not missing:
        return
    if not PYTHON.exists():
        sys.exit(f"{name}.py: {PYTHON} is not there; run `make setup` in {ROOT}")
    if missing and Path(sys.prefix) == PYTHON.parents[1]:
        lacks = ", ".join(missing)
        sys.exit(f"{name}.py: {PYTHON} lacks {lacks}; run `rm -rf .venv && make setup` in {ROOT}")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # -P: modules of the folder it is run from must not stand in for ours.
    command = [str(PYTHON), "-P", "-m", f"clients.{name}", *sys.argv[1:]]
    os.execve(command[0], command, {**os.environ, "PYTHONPATH": path})
