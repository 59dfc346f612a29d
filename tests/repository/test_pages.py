"""Pages for programmers do what they say: every block is run, against a real server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from clients.faces import FaceDetector, align
from clients.video import read_frames


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.M | re.S)


@pytest.fixture
def here(tmp_path, sample):
    """A folder as the pages suppose it: a video, a crop, the docs."""
    (tmp_path / "video.mp4").symlink_to(sample)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    image = next(iter(read_frames(sample))).image
    (face,) = FaceDetector().detect(image)
    (tmp_path / "crop.rgb").write_bytes(align(image, face.landmarks).tobytes())
    return tmp_path


def run(command, here):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bash(script, here):
    return run(["bash", "-e", "-c", script], here)


def python(program, here, server):
    return run([sys.executable, "-c", program.replace("localhost:8001", server.grpc_url)], here)


def test_page_of_python_runs_from_top_to_bottom(here, server):
    program = "\n".join(blocks("python.md", "python"))
    # The last block starts a server of its own, which takes what `videofer export` left.
    program, _, _ = program.partition("import videofer\n\nwith videofer.serve() as server:")
    said = python(program, here, server)
    assert said.startswith("person 1: happy ")
    assert "no face in any of the 20 frames looked at" in said
    assert "person 1  happy" in said
    assert (here / "faces.csv").is_file()
    assert (here / "faces.windows.csv").is_file()


def commands(page):
    """The console's lines, a script each block."""
    return [re.sub(r"^\$ ", "", block, flags=re.M) for block in blocks(page, "console")]


def test_page_of_other_languages_runs_over_http(here, server):
    for script in commands("other-languages.md")[:2]:
        address = server.http_url.removeprefix("http://")
        said = bash(script.replace("localhost:8000", address), here)
    assert re.search(r'"data":\["0\.\d+:3:happy"', said)


def test_page_of_other_languages_runs_over_grpc(here, server):
    (script,) = commands("other-languages.md")[2:]
    bash(script, here)
    (program,) = blocks("other-languages.md", "python")
    said = python(program, here, server)
    named = dict(line.split(" ", 1) for line in said.splitlines())
    assert set(named) >= {"logits", "probabilities", "weights", "frame_logits"}
    probabilities = np.array(eval(named["probabilities"].partition("] ")[2]))  # noqa: S307
    assert probabilities.argmax() == 3
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
