"""Name the emotion of the face in a video.

    videofer predict video.mp4
    videofer predict video.mp4 --url gpu-box:8001 --model ran --json
    videofer predict video.mp4 --plot weights.png --annotate seen.mp4

Reads the video, follows one face through it, sends the face to a network of a Triton server
(`fan` if none is named), and prints the emotion with the frames that decided it.
`videofer serve` starts such a server here; `videofer networks` lists what one offers.
"""

import argparse
import sys
from pathlib import Path

from base.command import make_parser, run_command
from clients.analyse import Sampling, analyse
from clients.triton import TritonClient
from clients.verbs.options import (
    add_network_option,
    add_output_options,
    add_server_options,
    add_video_options,
    log_steps,
    output_file,
)
from clients.video import read_info


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("predict", __doc__)
    parser.add_argument("video", type=Path, help="file to read, anything FFmpeg can decode")
    add_server_options(parser)
    add_network_option(parser)
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
    log_steps(args.verbose)
    return run_command("predict", lambda: run(args))
