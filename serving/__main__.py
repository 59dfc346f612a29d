"""Serve model_repository/ on loopback until Ctrl-C, or for as long as a command runs.

    python -m serving --platform cpu_fp32
    python -m serving --platform cpu_fp32 --free-ports -- clients/predict.py video.mp4

CPU platforms run in the embedded server, TensorRT platforms in Triton's container. A command
finds the server's gRPC address in the environment variable TRITON_URL.
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

from serving import ROOT, ServingError
from serving.container import run_container
from serving.embedded import EmbeddedServer
from serving.launch import Ports, free_ports
from serving.platforms import DEFAULT, Platform, read_platform

INTERRUPTED = 130  # what a shell says of a command ended by Ctrl-C


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--platform",
        default=DEFAULT,
        help="default, or a name in model_repository/*/configs/ (default: %(default)s)",
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
        "--release", default="26.11", help="of Triton's container (default: %(default)s)"
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
        return "`make engines` builds it"
    if any("int8" in path.name for path in missing):
        return (
            "the weights exported last have no measured ranges: `make calibrate DATA=<faces>` with "
            "their MODEL, CHECKPOINT and LABELS measures them for another `make export`, "
            "PLATFORM=cpu_fp32 serves without, and `make export MODEL=all` brings back shipped "
            "ones, which have them"
        )
    return "`make export` does it"


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Stop the server in good order, on Ctrl-C and on SIGTERM."""
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    # SIGINT too: a script's `&` starts its commands with Ctrl-C ignored.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    fixed = Ports(args.http_port, args.grpc_port, args.metrics_port)
    ports = free_ports() if args.free_ports else fixed
    try:
        platform = read_platform(args.repository.resolve(), args.platform)
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
    except ServingError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED if args.command else 0


if __name__ == "__main__":
    sys.exit(main())
