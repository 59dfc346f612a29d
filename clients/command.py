"""What the commands of this room share: options, what they may be, and how a run ends.

predict.py, saliency.py  ->  options of the server and the video  ->  run_command  ->  exit code
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from clients.errors import FerError


def number(
    kind: type[float] | type[int], *, least: float, most: float = sys.float_info.max
) -> Callable[[str], float]:
    """Make a parser of finite numbers from `least` to `most`."""
    upwards = most == sys.float_info.max
    limits = f"of at least {least:g}" if upwards else f"from {least:g} to {most:g}"

    def parse_number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            whole = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r}: expected a {whole} {limits}")
        return value

    return parse_number


def host_port(text: str) -> str:
    """Check that an address is one of gRPC's."""
    host, separator, port = text.rpartition(":")
    if "://" in text or not host or not separator or not port.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected host:port of Triton's gRPC endpoint, without http://"
        )
    if not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a port from 1 to 65535")
    return text


def output_file(suffix: str) -> Callable[[str], Path]:
    """Make a parser of names of files to write, so that a bad one is refused before the work."""

    def parse_output(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() != suffix:
            raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in {suffix}")
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text} is a folder; expected a file to write")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise argparse.ArgumentTypeError(f"{text}: {path.parent} is no folder to write to")
        return path

    return parse_output


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add which server and which of its networks to ask."""
    parser.add_argument(
        "--url",
        type=host_port,
        default=os.environ.get("TRITON_URL", "localhost:8001"),
        help="host:port of Triton's gRPC endpoint (default: $TRITON_URL, else localhost:8001)",
    )
    parser.add_argument(
        "--model",
        default="fan",
        help="network to ask: fan, dan, ran, deep_emotion, fan_fusion, or whatever else the server "
        "has (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=number(float, least=0.001),
        default=60,
        help="seconds that one request may take (default: %(default)s)",
    )


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """Add which frames of a video to look at."""
    parser.add_argument(
        "--fps",
        type=number(float, least=0),
        default=10,
        help="frames to look at for each second of video, 0 for every one (default: %(default)s)",
    )
    parser.add_argument(
        "--max-frames",
        type=number(int, least=1),
        help="look at no more than so many (default: no limit)",
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add how to print the answer, and how much else."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("-v", "--verbose", action="store_true", help="log each step to stderr")


def run_command(
    name: str, run: Callable[[argparse.Namespace], None], args: argparse.Namespace
) -> int:
    """Run a command and return its exit code; what a user can act on is told in one line.

    Args:
        name: as errors begin.
    """
    # A terminal that cannot show the bars still gets the numbers.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    try:
        run(args)
    except FerError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the answer has read enough; nothing more can be printed, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"{name}: {error}", file=sys.stderr)  # a full disk, say
        return 1
    return 0
