"""Serve model_repository/ on loopback until Ctrl-C, or for as long as a command runs.

    videofer serve
    videofer serve --platform ort_fp32
    videofer serve --free-ports -- clients/predict.py video.mp4

Without --platform it serves the best that this machine can: TensorRT's plans if they fit its GPU,
else OpenVINO in INT8, else ONNX Runtime in FP32. It says which, and why. CPU platforms run in the
embedded server, TensorRT platforms in Triton's container. A command finds the server's gRPC address
in the environment variable TRITON_URL.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from base import ROOT, TRITON_RELEASE
from base.command import INTERRUPTED, make_parser, run_command
from serving import ServingError
from serving.choose import choose_platform
from serving.container import run_container
from serving.embedded import EmbeddedServer
from serving.launch import Ports, free_ports
from serving.platforms import Platform, read_platform


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("serve", __doc__)
    parser.add_argument(
        "--platform",
        help="trt_fp16, trt_int8, openvino_int8, ort_int8 or ort_fp32 (default: the best that "
        "this machine can)",
    )
    parser.add_argument(
        "--repository",
        type=Path,
        default=ROOT / "model_repository",
        help="models to serve (default: model_repository)",
    )
    parser.add_argument("--http-port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--grpc-port", type=int, default=8001, help="(default: %(default)s)")
    parser.add_argument("--metrics-port", type=int, default=8002, help="(default: %(default)s)")
    parser.add_argument(
        "--free-ports", action="store_true", help="use any free ports instead of those"
    )
    parser.add_argument(
        "--release", default=TRITON_RELEASE, help="of Triton's container (default: %(default)s)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log each step to stderr")
    parser.add_argument(
        "command", nargs="*", help="command to run while the server is up, after -- (default: wait)"
    )
    return parser


def serve_embedded(platform: Platform, ports: Ports, command: list[str]) -> int:
    """Serve a CPU platform while `command` runs, or until the server ends.

    Returns:
        The exit code of the command.
    """
    if platform.missing:
        raise ServingError(
            f"platform {platform.name} needs {', '.join(map(str, platform.missing))}, "
            f"not built yet; {remedy(platform, platform.missing)}"
        )
    with EmbeddedServer(platform, ports) as server:
        if command:
            return run_beside(server, command)
        model = "" if "fan" in platform.networks else f" --model {platform.networks[0]}"
        print(
            f"Triton serves {', '.join(platform.networks)} on platform {platform.name}: "
            f"gRPC {server.grpc_url}, HTTP {server.http_url}, metrics port {ports.metrics}; "
            f"log {server.log}. Ctrl-C stops it. To ask it: "
            f"clients/predict.py video.mp4 --url {server.grpc_url}{model}",
            flush=True,
        )
        server.wait()
        raise ServingError(f"Triton ended: {server.reason()}")


def run_beside(server: EmbeddedServer, command: list[str]) -> int:
    """Run a command that finds the server in TRITON_URL; return its exit code."""
    try:
        return subprocess.run(command, env={**os.environ, "TRITON_URL": server.grpc_url}).returncode
    except OSError as error:
        raise ServingError(f"{command[0]} cannot be run ({error.strerror})") from error


def remedy(platform: Platform, missing: Sequence[Path]) -> str:
    """Say what builds a platform's missing artefacts."""
    if platform.needs_tensorrt:
        return "`videofer engines` builds it"
    if any("int8" in path.name for path in missing):
        return (
            "the weights exported last have no measured ranges: `videofer calibrate <faces>` with "
            "their --model, --checkpoint and --labels measures them for another `videofer export`, "
            "`--platform ort_fp32` serves without, and `videofer export --model <network>` brings "
            "back shipped ones, which have them"
        )
    return "`videofer export` does it"


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Stop the server in good order, on Ctrl-C and on SIGTERM."""
    raise KeyboardInterrupt


def run(args: argparse.Namespace) -> int:
    """Choose what to serve, say so, and serve it; give the exit code."""
    fixed = Ports(args.http_port, args.grpc_port, args.metrics_port)
    ports = free_ports() if args.free_ports else fixed
    repository = args.repository.resolve()
    if args.platform:
        platform = read_platform(repository, args.platform)
    else:
        platform, reason = choose_platform(repository, args.release)
        print(f"serve: platform {platform.name}: {reason}", file=sys.stderr)
    for ensemble, lacking in platform.left_out.items():
        print(
            f"serve: {ensemble} is left out: platform {platform.name} needs "
            f"{', '.join(map(str, lacking))}, not built yet; {remedy(platform, lacking)}",
            file=sys.stderr,
        )
    if platform.needs_tensorrt:
        if args.command:
            raise ServingError("a command after -- runs beside the embedded server only")
        return run_container(platform, ports, args.release)
    return serve_embedded(platform, ports, args.command)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    # SIGINT too: a script's `&` starts its commands with Ctrl-C ignored.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    code = run_command("serve", lambda: run(args))
    # Ctrl-C is how a server is meant to end.
    return 0 if code == INTERRUPTED and not args.command else code
