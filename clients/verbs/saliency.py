"""Map where in a face a network reads the emotion.

    videofer saliency video.mp4 --plot saliency.png
    videofer saliency picture.jpg --model deep_emotion --patch 32 --stride 8

Takes the largest face of a picture, or the face that counts most in a video, and asks a Triton
server of it again and again, a gray patch over another part each time. Draws the face beside a map
of how far the emotion's probability falls.
"""

import argparse
import sys
from pathlib import Path

from base.command import make_parser, number, run_command
from clients.analyse import analyse
from clients.analysis import Options
from clients.faces import FACE_SIZE
from clients.occlusion import Patch, find_saliency
from clients.triton import TritonClient
from clients.verbs.options import (
    access_of,
    add_network_option,
    add_output_options,
    add_server_options,
    add_video_options,
    log_steps,
    output_file,
)
from clients.video import Video

SMALLEST_PATCH = 8  # pixels; smaller ones hide nothing that a network sees
SMALLEST_STRIDE = 4  # pixels; at 224 of a side, 3,000 copies


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("saliency", __doc__)
    parser.add_argument("source", type=Path, help="picture or video to read")
    add_server_options(parser)
    add_network_option(parser)
    parser.add_argument(
        "--patch",
        type=number(int, least=SMALLEST_PATCH, most=FACE_SIZE),
        default=Patch.size,
        help=f"side of the patch, in pixels of a face of {FACE_SIZE} (default: %(default)s)",
    )
    parser.add_argument(
        "--stride",
        type=number(int, least=SMALLEST_STRIDE, most=FACE_SIZE),
        default=Patch.stride,
        help="pixels that the patch moves at a time, at most its side (default: %(default)s)",
    )
    add_video_options(parser)
    parser.add_argument(
        "--plot",
        type=output_file(".png"),
        default="saliency.png",
        help="write the face and the map here (default: %(default)s)",
    )
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Find the face, cover it part by part, print where that changes most, draw the map."""
    from clients.reports import crops, plot  # slow to import, which --help need not wait for

    progress = sys.stderr.isatty()
    with Video(args.source) as video:
        video.info()  # a bad file is told at once, server or no server
    options = Options(fps=args.fps, max_frames=args.max_frames, people=1, window=0)
    with TritonClient(args.url, args.model, args.timeout, access_of(args)) as client:
        analysis = analyse(args.source, client, options, progress=progress)
        (track,) = analysis.tracks
        i = int(track.answer.strengths.argmax())
        (face,) = crops.crop_faces(args.source, [(track, i)])
        # A picture has no time.
        seconds = float(track.seconds[i]) if len(analysis.frames) > 1 else None
        patch = Patch(args.patch, args.stride)
        saliency = find_saliency(client, face, patch, seconds, progress=progress)
    print(saliency.to_json() if args.json else saliency.to_text(), flush=True)
    plot.draw_map(saliency, args.source.name, args.plot)
    print(f"map: {args.plot}", file=sys.stderr)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; refuse to write over what is read, or to leave parts uncovered."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.source.resolve() == args.plot.resolve():
        parser.error("the picture or video and --plot must be different files")
    if args.stride > args.patch:
        parser.error(f"--stride {args.stride} leaves parts uncovered; at most --patch {args.patch}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    log_steps(args.verbose)
    return run_command("saliency", lambda: run(args))
