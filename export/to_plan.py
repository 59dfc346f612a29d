"""The arrow walked on a GPU: an ONNX file -> a TensorRT plan, and the manifest beside it.

    videofer engines

    build/fp16/*.onnx, build/int8/*.onnx  ->  model_repository/<model>/1/*.plan, *.plan.json

    videofer engines --image nvcr.io/nvidia/tensorrt      the same, inside a container

Runs alike with tensorrt 10.14 and newer, and with TensorRT-RTX: networks are strongly typed, so
precision is the graph's and there is no flag for it. Needs no torch, no onnx and no numpy: inside
NVIDIA's container there is TensorRT and little else. A plan whose manifest still fits is kept.
"""

import fcntl
import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from base import ROOT, TRITON_RELEASE
from base.command import make_parser, run_command
from base.errors import ExportError
from base.files import write_whole
from export.profiles import PLANS, Plan, Profile

WORKSPACE_BYTES = 4 << 30  # what a kernel may borrow while it is chosen and run
OLDEST_TENSORRT = (10, 14)


@dataclass(frozen=True)
class Gpu:
    """The GPU that a plan is built for, and runs on.

    Args:
        name: as nvidia-smi gives it.
        compute_capability: such as "9.0".
    """

    name: str
    compute_capability: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a plan was built from and for; the JSON beside it.

    Args:
        tensorrt: version of the builder.
        gpu: name of the GPU.
        compute_capability: of the GPU.
        precision: "fp16" or "int8".
        onnx: the graph it was built from, relative to the project.
        onnx_sha256: of that graph.
        profile: the input's name, and its smallest, common and largest shape.
        plan_sha256: of the plan, so that half a plan is known for what it is.
        build_seconds: how long the build took.
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    precision: str
    onnx: str
    onnx_sha256: str
    profile: dict[str, list[list[int]]]
    plan_sha256: str = ""
    build_seconds: float = 0.0


def manifest_path(plan: Path) -> Path:
    """Where a plan's manifest lies: model.plan -> model.plan.json."""
    return plan.with_name(f"{plan.name}.json")


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_gpu() -> Gpu:
    """Ask nvidia-smi for the first GPU.

    Raises:
        ExportError: where there is none.
    """
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        name, capability = answer.stdout.splitlines()[0].rsplit(",", 1)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError) as error:
        raise ExportError(
            "plans are built on the GPU that serves them, and no NVIDIA GPU answers `nvidia-smi` "
            "here; run `videofer engines` there (`videofer check-engines` compiles without one)"
        ) from error
    return Gpu(name.strip(), capability.strip())


def find_tensorrt() -> Any:
    """Import TensorRT.

    Raises:
        ExportError: where it is missing or too old.
    """
    # The same order as nvidia-smi's, so that the first GPU there is the first one here.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise ExportError(
            f"TensorRT is not installed ({error}): `.venv/bin/pip install -e '.[gpu]'`, or build "
            "in a container: `videofer engines --image nvcr.io/nvidia/tensorrt`"
        ) from error
    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if version < OLDEST_TENSORRT:
        oldest = ".".join(map(str, OLDEST_TENSORRT))
        raise ExportError(f"TensorRT is {trt.__version__}; expected {oldest} or newer")
    return trt


def make_log(trt: Any) -> Any:
    """Make a logger that keeps TensorRT's errors; the first one is the cause of the others."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(" ".join(message.split()))

    return Log()


def build_plan(trt: Any, graph: bytes, profile: Profile, cache: bytes = b"") -> tuple[bytes, bytes]:
    """Build one plan.

    Args:
        trt: the module tensorrt, or tensorrt_rtx.
        graph: the ONNX file's content.
        cache: timings of earlier builds with this TensorRT on this GPU.

    Returns:
        The plan, and the timings with this build's added.

    Raises:
        ExportError: with the first thing that TensorRT said.
    """
    log = make_log(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # its way of saying that CUDA does not start
        raise ExportError(f"TensorRT {trt.__version__} does not start: {first(log)}") from error
    # Version 10 builds weakly typed networks without this flag; version 11 ignores it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        words = " ".join(parser.get_error(0).desc().split())
        raise ExportError(f"TensorRT {trt.__version__} does not take the graph: {words}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    timings = config.create_timing_cache(cache)
    if timings is None or not config.set_timing_cache(timings, ignore_mismatch=False):
        timings = config.create_timing_cache(b"")  # another driver's, say
        config.set_timing_cache(timings, ignore_mismatch=False)
    shapes = builder.create_optimization_profile()
    shapes.set_shape(profile.tensor, *profile.shapes)
    config.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"TensorRT {trt.__version__} cannot build the graph: {first(log)}")
    return bytes(plan), bytes(timings.serialize())


def first(log: Any) -> str:
    """The first error of make_log's logger: the cause of the others."""
    return log.errors[0] if log.errors else "it does not say why"


def read_graph(plan: Plan, root: Path) -> bytes:
    """Read the ONNX file that a plan is built from."""
    try:
        return (root / plan.graph).read_bytes()
    except FileNotFoundError as error:
        raise ExportError(f"{plan.graph} is not there; `videofer export` writes it") from error


def exported_plans(root: Path) -> list[Plan]:
    """List the plans whose graphs are there, and say which are left out.

    Raises:
        ExportError: where there is none.
    """
    exported, left_out = [], {}
    for plan in PLANS:
        if (root / plan.graph).is_file():
            exported.append(plan)
        elif (root / replace(plan, precision="fp16").graph).is_file():
            # Weights without ranges have no INT8, and are served in FP16 all the same.
            left_out[str(plan.graph)] = (
                f"is not there (`videofer calibrate --model {plan.network} <faces>`, with the "
                "--checkpoint and --labels that were exported, and `videofer export` again)"
            )
        elif not any((root / p.graph).is_file() for p in PLANS if p.network == plan.network):
            left_out[plan.network] = f"is not exported (`videofer export --model {plan.network}`)"
    if not exported:
        raise ExportError(f"{PLANS[0].graph} is not there; `videofer export` writes it")
    for name, reason in left_out.items():
        print(f"left out: {name} {reason}")
    return exported


def intended(trt: Any, gpu: Gpu, plan: Plan, graph: bytes) -> Manifest:
    """Write the manifest that a plan built now would have, but for the plan's own lines."""
    return Manifest(
        tensorrt=trt.__version__,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        precision=plan.precision,
        onnx=str(plan.graph),
        onnx_sha256=hashlib.sha256(graph).hexdigest(),
        profile={plan.profile.tensor: [list(shape) for shape in plan.profile.shapes]},
    )


def is_current(plan: Path, wanted: Manifest) -> bool:
    """Whether a plan is whole and was built from and for just what is wanted."""
    try:
        found = json.loads(manifest_path(plan).read_text())
        own = {key: found[key] for key in ("plan_sha256", "build_seconds")}
        return bool(found == {**asdict(wanted), **own} and sha256(plan) == own["plan_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def only_builder(folder: Path) -> Iterator[None]:
    """Let one build at a time work on a project; a second one waits, and says so."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".engines.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another `videofer engines` is at work here; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def timing_cache(trt: Any, gpu: Gpu, root: Path) -> Path:
    """Where timings are kept: they hold for one version of TensorRT on one model of GPU."""
    name = "".join(c if c.isalnum() else "-" for c in gpu.name)
    return root / "build" / "timing" / f"{trt.__version__}-{name}.cache"


def make_plan(trt: Any, gpu: Gpu, plan: Plan, root: Path) -> bool:
    """Build one plan and its manifest, unless what is there still fits.

    Returns:
        Whether it was built.
    """
    target = root / plan.path
    graph = read_graph(plan, root)
    wanted = intended(trt, gpu, plan, graph)
    if is_current(target, wanted):
        return False
    cache = timing_cache(trt, gpu, root)
    known = cache.read_bytes() if cache.is_file() else b""
    start = time.perf_counter()
    try:
        content, timings = build_plan(trt, graph, plan.profile, known)
    except ExportError as error:
        raise ExportError(f"{plan.graph}: {error}") from error
    own = {
        "plan_sha256": hashlib.sha256(content).hexdigest(),
        "build_seconds": round(time.perf_counter() - start, 1),
    }
    # Each file is whole, and a plan beside another's manifest is refused by its hash.
    write_whole(target, content)
    write_whole(cache, timings)
    manifest = json.dumps({**asdict(wanted), **own}, indent=2) + "\n"
    write_whole(manifest_path(target), manifest.encode())
    return True


def make_plans(trt: Any, gpu: Gpu, root: Path) -> None:
    """Build every plan that is not current, and say how far it is."""
    with only_builder(root / "build"):
        plans = exported_plans(root)
        for number, plan in enumerate(plans, 1):
            print(f"[{number}/{len(plans)}] {plan.path} ({plan.precision}) ...", flush=True)
            start = time.perf_counter()
            built = make_plan(trt, gpu, plan, root)
            seconds = time.perf_counter() - start
            print(f"        {f'built in {seconds:.0f} s' if built else 'is current'}", flush=True)


def build_in_container(image: str, release: str) -> int:
    """Run this command in a container; give its exit code.

    Raises:
        ExportError: where no docker engine answers.
    """
    try:
        subprocess.run(["docker", "info"], capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ExportError(
            "--image builds in a container: no docker engine answers `docker info` here"
        ) from error
    return subprocess.run(docker_command(image, release)).returncode


def docker_command(image: str, release: str) -> list[str]:
    """Write the command line that builds in a container: TensorRT and Python are all it needs."""
    tagged = ":" in image.rpartition("/")[2]
    return [
        *("docker", "run", "--rm", "--gpus", "device=0", "--user", f"{os.getuid()}:{os.getgid()}"),
        *("-v", f"{ROOT}:/project", "-w", "/project"),
        image if tagged else f"{image}:{release}-py3",
        *("python3", "-m", "export.to_plan"),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("engines", __doc__)
    parser.add_argument(
        "--image",
        help="container to build in, such as nvcr.io/nvidia/tensorrt; without a tag it gets that "
        "of --release (default: build with this machine's own TensorRT)",
    )
    parser.add_argument(
        "--release",
        default=TRITON_RELEASE,
        help="of Triton's container, which has the same TensorRT (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    def command() -> int:
        if args.image:
            return build_in_container(args.image, args.release)
        gpu = find_gpu()
        make_plans(find_tensorrt(), gpu, ROOT)
        return 0

    return run_command("engines", command)


if __name__ == "__main__":
    sys.exit(main())
