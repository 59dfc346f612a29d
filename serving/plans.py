"""Whether plans fit the server that is to load them: asked before it starts.

    1/model.plan + 1/model.plan.json
        x  the container's TensorRT, the GPU, the graph in build/, the platform's config

A plan runs on the TensorRT and the GPU that built it, and Triton's own words about another are
hard to read. The manifest beside each plan is written by `videofer engines`.
"""

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import ServingError
from serving.platforms import DEFAULT, read_config

REBUILD = "rebuild it with `videofer engines`"
KEYS = (
    *("tensorrt", "gpu", "compute_capability"),
    *("precision", "profile", "onnx", "onnx_sha256", "plan_sha256"),
)
PRECISIONS = {"model.plan": "fp16", "model_int8.plan": "int8"}  # as `videofer engines` names them
# Asks the container's library itself: which release carries which TensorRT is nowhere promised.
ASK_TENSORRT = """
import ctypes
for major in range(19, 9, -1):
    try:
        library = ctypes.CDLL(f"libnvinfer.so.{major}")
    except OSError:
        continue
    numbers = ("Major", "Minor", "Patch", "Build")
    print(".".join(str(getattr(library, f"getInferLib{name}Version")()) for name in numbers))
    break
"""


@dataclass(frozen=True)
class Host:
    """What the plans will meet.

    Args:
        tensorrt: the server's version and build, such as "11.4.0.106": a plan loads on the very
            build alone (NVIDIA's support policy; NVIDIA/TensorRT issue 3793).
        gpu: the GPU's name, as nvidia-smi gives it.
        compute_capability: of the GPU, such as "9.0".
    """

    tensorrt: str
    gpu: str
    compute_capability: str


def find_host(image: str) -> Host:
    """Ask the container for its TensorRT, and nvidia-smi for the first GPU, which it will get."""
    ask = ["docker", "run", "--rm", "--entrypoint", "python3", image, "-c", ASK_TENSORRT]
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    said = read_lines(ask)  # the first time, docker shows here how far its download is
    if not said:
        raise ServingError(
            f"{image} does not tell its TensorRT; does `docker run --rm {image} true` work?"
        )
    gpu, _, capability = next(iter(read_lines(query)), "").rpartition(",")
    if not gpu:
        raise ServingError("`nvidia-smi --query-gpu=name,compute_cap` names no GPU")
    return Host(said[-1], gpu.strip(), capability.strip())


def read_lines(command: list[str]) -> list[str]:
    """Run a command and take what it prints, or nothing; its errors go to the terminal."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []


def check_plan(plan: Path, host: Host, root: Path, release: str, platform: str = DEFAULT) -> None:
    """Refuse a plan that its manifest says does not fit.

    Args:
        root: the project, to which the manifest's `onnx` is relative.
        release: of the container that is to load it.
        platform: whose config it is to fit.

    Raises:
        ServingError: saying what does not fit, and how to mend it.
    """
    manifest = read_manifest(plan)
    if sha256(plan) != manifest["plan_sha256"]:
        raise ServingError(f"{plan} is not what its manifest describes (cut off?); {REBUILD}")
    check_against_config(plan, manifest, platform)
    version = ".".join(str(manifest["tensorrt"]).split(".")[:4])  # a fifth is the package's
    if version != host.tensorrt:
        raise ServingError(
            f"{plan} was built with TensorRT {version}, and the server has {host.tensorrt}; "
            "rebuild it with `videofer engines --image nvcr.io/nvidia/tensorrt --release "
            f"{release}`"
        )
    built_for = (manifest["gpu"], manifest["compute_capability"])
    if built_for != (host.gpu, host.compute_capability):
        raise ServingError(
            f"{plan} was built for {built_for[0]} (compute capability {built_for[1]}), and this is "
            f"{host.gpu} ({host.compute_capability}); {REBUILD} here"
        )
    graph = root / str(manifest["onnx"])
    # A machine that only serves has no graphs, and then nothing newer than the plan either.
    if graph.is_file() and sha256(graph) != manifest["onnx_sha256"]:
        raise ServingError(f"{graph} has changed since {plan} was built from it; {REBUILD}")


def check_against_config(plan: Path, manifest: dict[str, Any], platform: str) -> None:
    """Refuse a plan of another precision than its name, or of smaller batches than its config."""
    precision = PRECISIONS.get(plan.name, manifest["precision"])
    if manifest["precision"] != precision:
        raise ServingError(
            f"{plan} is {manifest['precision']} by its manifest, and {precision} by its name; "
            f"{REBUILD}"
        )
    most = read_config(plan.parents[1], platform).max_batch_size
    try:
        ((_, _, (high, *_)),) = manifest["profile"].values()
        fits = most <= high
    except (AttributeError, TypeError, ValueError) as error:
        raise ServingError(f"{plan}: its manifest's profile cannot be read; {REBUILD}") from error
    if not fits:
        raise ServingError(
            f"{plan} was built for up to {high} frames, and its config has max_batch_size "
            f"{most}; {REBUILD}"
        )


def read_manifest(plan: Path) -> dict[str, Any]:
    """Read the JSON beside a plan."""
    path = plan.with_name(f"{plan.name}.json")
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ServingError(
            f"{plan} has no manifest that can be read ({path}); {REBUILD}"
        ) from error
    if not isinstance(manifest, dict) or not all(manifest.get(key) for key in KEYS):
        raise ServingError(f"{path} is not a manifest, or lacks a part of it; {REBUILD}")
    return manifest


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
