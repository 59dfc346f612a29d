#!/usr/bin/env python3
"""Name the emotion of the face in a video.

    clients/predict.py video.mp4
    clients/predict.py video.mp4 --url gpu-box:8001 --model ran --json
    clients/predict.py video.mp4 --plot weights.png --annotate seen.mp4
    clients/predict.py --list-models

Reads the video, follows one face through it, sends the face to a network of a Triton server
(`fan` if none is named), and prints the emotion with the frames that decided it.
`make serve PLATFORM=cpu` starts such a server here.
"""

import argparse
import json
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    bootstrap = Path(__file__).resolve().with_name("bootstrap.py")
    runpy.run_path(str(bootstrap))["go_on_as_module"](__file__, __package__)

from clients.analyse import Sampling, analyse
from clients.command import (
    add_output_options,
    add_server_options,
    add_video_options,
    output_file,
    run_command,
)
from clients.errors import ServerMismatch
from clients.triton import TritonClient, list_networks
from clients.video import read_info


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "video", type=Path, nargs="?", help="file to read, anything FFmpeg can decode"
    )
    parser.add_argument(
        "--list-models", action="store_true", help="print the server's networks instead; no video"
    )
    add_server_options(parser)
    add_video_options(parser)
    parser.add_argument(
        "--plot",
        type=output_file(".png"),
        help="write a picture of every frame's weight here",
    )
    parser.add_argument(
        "--annotate", type=output_file(".mp4"), help="write the video with the answer drawn in here"
    )
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Analyse the video, print the answer, draw the pictures that were asked for."""
    if args.list_models:
        print_networks(args)
        return
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


def print_networks(args: argparse.Namespace) -> None:
    """Print the networks that the server has, one line each, or all as one JSON list."""
    networks = list_networks(args.url, args.timeout)
    if not networks:
        raise ServerMismatch(
            f"the server at {args.url} has no network that follows the contract; run `make export` "
            "and start `make serve` again"
        )
    if args.json:
        print(json.dumps([network.to_dict() for network in networks]))
    else:
        print("\n".join(network.to_text() for network in networks))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; refuse to write over what is read, or twice to one file."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.list_models == (args.video is not None):
        parser.error("expected either a video or --list-models")
    named = [path.resolve() for path in (args.video, args.plot, args.annotate) if path]
    if len(set(named)) < len(named):
        parser.error("the video, --plot and --annotate must be different files")
    return args


def main(argv: list[str] | None = None) -> int:
    return run_command("predict.py", run, parse(argv))


if __name__ == "__main__":
    sys.exit(main())
