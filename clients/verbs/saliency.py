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

import cv2
import numpy as np

from base.command import make_parser, number, run_command
from clients.analyse import Sampling, analyse
from clients.errors import NoFaceFound, VideoUnreadable
from clients.faces import FACE_SIZE, FaceDetector, align
from clients.occlusion import Patch, find_saliency
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
    from clients import pictures  # slow to import, which --help need not wait for

    progress = sys.stderr.isatty()
    read_info(args.source)  # a bad file is told at once, server or no server
    with TritonClient(args.url, args.model, args.timeout) as client:
        if cv2.haveImageReader(str(args.source)):
            face, pts_seconds = crop_picture(args.source), None
        else:
            sampling = Sampling(args.fps, args.max_frames)
            result = analyse(args.source, client, sampling, progress=progress)
            sighting = result.faces[int(result.strengths.argmax())]
            (face,), pts_seconds = (
                pictures.crop_faces(args.source, [sighting]),
                sighting.pts_seconds,
            )
        patch = Patch(args.patch, args.stride)
        saliency = find_saliency(client, face, patch, pts_seconds, progress=progress)
    print(saliency.to_json() if args.json else saliency.to_text(), flush=True)
    pictures.draw_map(saliency, args.source.name, args.plot)
    print(f"map: {args.plot}", file=sys.stderr)


def crop_picture(path: Path) -> np.ndarray:
    """Cut the largest face (224, 224, 3) out of a picture."""
    # Unlike FFmpeg, it turns a photograph upright.
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise VideoUnreadable(f"{path}: the picture cannot be decoded; it may be damaged")
    face = max(FaceDetector().detect(image), key=lambda face: face.size, default=None)
    if face is None:
        raise NoFaceFound(f"{path}: no face in the picture")
    return align(image, face.landmarks)


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
