#!/usr/bin/env python3
"""Name the emotion of the face in a video.

    clients/predict.py video.mp4
    clients/predict.py video.mp4 --url gpu-box:8001 --json
    clients/predict.py video.mp4 --plot weights.png --annotate seen.mp4

Reads the video, follows one face through it, sends the face to the `fan` ensemble of a Triton
server, and prints the emotion with the frames that decided it. `make serve PLATFORM=cpu`
starts such a server here.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"

if __name__ == "__main__" and not __package__:
    # Run by its path: go on as `python -m clients.predict`, in the environment of `make setup`.
    if not PYTHON.exists():
        sys.exit(f"predict.py: {PYTHON} is not there; run `make setup` in {ROOT}")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # -P: modules of the folder it is run from must not stand in for ours.
    command = [str(PYTHON), "-P", "-m", "clients.predict", *sys.argv[1:]]
    os.execve(command[0], command, {**os.environ, "PYTHONPATH": path})

from clients.analyse import Sampling, analyse  # noqa: E402
from clients.errors import FerError  # noqa: E402
from clients.triton import TritonClient  # noqa: E402
from clients.video import read_info  # noqa: E402


def number(kind: type[float] | type[int], *, least: float) -> Callable[[str], float]:
    """Make a parser of finite numbers that are not less than `least`."""

    def parse_number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not least <= value < float("inf"):
            whole = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r}: expected a {whole} of at least {least:g}")
        return value

    return parse_number


def host_port(text: str) -> str:
    """Check that an address is one of gRPC's."""
    host, separator, port = text.rpartition(":")
    if "://" in text or not host or not separator or not port.isdigit():
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected host:port of Triton's gRPC endpoint, without http://"
        )
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("video", type=Path, help="file to read, anything FFmpeg can decode")
    parser.add_argument(
        "--url",
        type=host_port,
        default=os.environ.get("TRITON_URL", "localhost:8001"),
        help="host:port of Triton's gRPC endpoint (default: $TRITON_URL, else localhost:8001)",
    )
    parser.add_argument("--model", default="fan", help="network to ask (default: %(default)s)")
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
    parser.add_argument(
        "--timeout",
        type=number(float, least=0.001),
        default=60,
        help="seconds that one request may take (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--plot", type=output_file(".png"), help="write a picture of every frame's weight here"
    )
    parser.add_argument(
        "--annotate", type=output_file(".mp4"), help="write the video with the answer drawn in here"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log each step to stderr")
    return parser


def run(args: argparse.Namespace) -> None:
    """Analyse the video, print the answer, draw the pictures that were asked for."""
    progress = sys.stderr.isatty()
    sampling = Sampling(args.fps, args.max_frames)
    read_info(args.video)  # a bad file is told at once, server or no server
    with TritonClient(args.url, args.model, args.timeout) as client:
        result = analyse(args.video, client, sampling, progress=progress)
    print(result.to_json() if args.json else result.to_text(), flush=True)
    if args.plot or args.annotate:
        from clients import pictures  # slow to import, and not always wanted

        if args.plot:
            pictures.plot(result, args.video, args.plot)
        if args.annotate:
            pictures.annotate(result, args.video, args.annotate, progress=progress)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; refuse to write over what is read, or twice to one file."""
    parser = build_parser()
    args = parser.parse_args(argv)
    named = [path.resolve() for path in (args.video, args.plot, args.annotate) if path]
    if len(set(named)) < len(named):
        parser.error("the video, --plot and --annotate must be different files")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    # A terminal that cannot show the bars still gets the numbers.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    try:
        run(args)
    except FerError as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the answer has read enough; nothing more can be printed, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"predict.py: {error}", file=sys.stderr)  # a full disk, say
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
