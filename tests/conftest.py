"""What the tests share: weights exported once, a server started once, videos made once.

Nothing here reads what `videofer export` left in model_repository/, so that a user's own export
changes no test.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from base.exported import Exported, write_record
from clients.sample import write_sample
from clients.triton import TritonClient
from export.calibrate import calibrate, ranges_path, read_calibration
from export.command import export
from networks.checkpoint import LABELS, Checkpoint, parameters, read_checkpoint
from networks.entries import NETWORKS
from serving.embedded import EmbeddedServer
from serving.platforms import read_platform

ROOT = Path(__file__).resolve().parents[1]
ORACLES = ROOT.parent / "shared" / "oracles"

# Networks beside FAN, and whose labels the tests give them.
OTHERS = {"dan": "affectnet8", "ran": "rafdb", "deep_emotion": "fer2013"}

Run = Callable[..., subprocess.CompletedProcess[str]]


def copy_repository(target: Path) -> Path:
    """Copy the configs alone, none of the artefacts that a user may have built."""
    built = shutil.ignore_patterns("*.onnx", "*.plan", "labels.txt", "*.json", ".*.partial")
    shutil.copytree(ROOT / "model_repository", target, ignore=built)
    return target


def offer(repository: Path, network: str, *ensembles: str) -> None:
    """Have a repository offer a network, as if it had been exported."""
    record = Exported(network=network, ensembles=ensembles or (network,), options={}, files=())
    write_record(record, repository)


def random_checkpoint(seed: int = 0, network: str = "fan", **options: object) -> Checkpoint:
    """Make weights that nobody trained, but whose every parameter matters."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    options = {
        "labels": LABELS["fer2013"],
        "preprocessing": NETWORKS[network].preprocessing,
    } | options
    variant = options.get("variant", NETWORKS[network].variants[0])
    parts = NETWORKS[network].parts(len(options["labels"]), variant, options["preprocessing"])
    weights = {}
    for part in parts:
        state = part.module.state_dict()
        for name, own in {} if part.optional else parameters(part).items():
            value = state[own]
            if name.endswith("running_var"):
                weights[name] = torch.rand(value.shape, generator=generator) + 0.5
            else:
                fan_in = value[0].numel() if value.dim() > 1 else 16
                weights[name] = torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5
    return Checkpoint(state=weights, network=network, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def shipped() -> Checkpoint:
    """The weights that the project ships."""
    return read_checkpoint(ROOT / "weights" / "fan.safetensors")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shipped weights' ONNX files are, once `repository` is there."""
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, shipped: Checkpoint, build: Path) -> Path:
    """A model repository filled from FAN's shipped weights, and for the others from random ones."""
    target = copy_repository(tmp_path_factory.mktemp("served") / "model_repository")
    weights = ROOT / "weights" / "fan.safetensors"
    export(shipped, read_calibration(ranges_path(weights), shipped), target, build)
    for network, labels in OTHERS.items():
        checkpoint = random_checkpoint(network=network, labels=LABELS[labels])
        export(checkpoint, calibrate(checkpoint, faces(4), "made up"), target, build)
    return target


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    """A real Triton that serves the shipped weights on the CPU, for the whole session."""
    with EmbeddedServer(read_platform(repository, "ort_fp32")) as running:
        yield running


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[TritonClient]:
    """A client of the session's server."""
    with TritonClient(server.grpc_url) as connected:
        yield connected


@pytest.fixture(scope="session")
def oracles() -> Path:
    """What the authors' own code computes; it lies beside a development checkout only."""
    if not ORACLES.is_dir():
        pytest.skip(f"{ORACLES} is not here; it is not part of the project")
    return ORACLES


@pytest.fixture(scope="session")
def smile() -> Path:
    """A man, neutral, then smiling, then neutral; beside a development checkout only, likewise."""
    video = ORACLES.parent / "data" / "videos" / "single_face.mp4"
    if not video.is_file():
        pytest.skip(f"{video} is not here; it is not part of the project")
    return video


@pytest.fixture(scope="session")
def oracle_checkpoint(oracles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oracles' FAN, in the file format of its authors."""
    target = tmp_path_factory.mktemp("oracle")
    subprocess.run([sys.executable, oracles / "assemble.py", target], check=True)
    return target / "fan.pth.tar"


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the session's videos, the sample among them."""
    folder = tmp_path_factory.mktemp("videos")
    write_sample(folder / "sample.mp4")
    return folder


@pytest.fixture(scope="session")
def sample(videos: Path) -> Path:
    """The demo's sample video."""
    return videos / "sample.mp4"


def ffmpeg(*arguments: object) -> None:
    """Run the FFmpeg that a dependency carries; it makes what tests need of odd videos."""
    executable = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run([executable, "-y", "-v", "error", *map(str, arguments)], check=True)


@pytest.fixture
def predict(server: EmbeddedServer) -> Run:
    """Run clients/predict.py as a user does: by its path, in a process of its own."""

    def run(*arguments: object, url: str = server.grpc_url) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "clients" / "predict.py"), *map(str, arguments)]
        environment = {**os.environ, "TRITON_URL": url}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")

    return run


def faces(num_frames: int, seed: int = 0) -> np.ndarray:
    """Make (N, 224, 224, 3) uint8 pictures that differ from each other."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num_frames, 7, 7, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(32, axis=1).repeat(32, axis=2))
