"""Say who is in a video, when, and with which emotion.

    videofer predict clip.mp4
    videofer predict clip.mp4 --report clip.html --annotate seen.mp4 --csv clip.csv
    videofer predict videos/ --out results/
    videofer predict rtsp://camera/1

Finds and follows every face, sends it to a network of a Triton server (`fan` if none is named), and
prints each person's emotion, whole and over time. A camera or a stream is live: one line of JSON a
person and step, and at the end the summary. `videofer serve` starts such a server here;
`videofer networks` lists what one offers.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from base.command import make_parser, number, run_command
from clients.analyse import analyse
from clients.analysis import Analysis, Options
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
from clients.video import Video, is_live, is_stream

FILES = {
    "plot": (".png", "a picture of each person's emotions and shares over time"),
    "annotate": (".mp4", "the video with everyone's emotion drawn in"),
    "report": (".html", "a page with the video, a timeline a person, and the table"),
    "csv": (".csv", "a row a frame and face; beside it NAME.windows.csv, a row a window"),
}


def shard(text: str) -> tuple[int, int]:
    """Read "3/16"."""
    index, separator, count = text.partition("/")
    if not (separator and index.isdecimal() and count.isdecimal() and 0 <= int(index) <= int(count)
            and int(count) > 0):  # fmt: skip
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected <index>/<count>, such as 3/16, the index from 0 or from 1"
        )
    return int(index), int(count)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("predict", __doc__)
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="source",
        help="video or picture, URL, camera (0 or /dev/video0), - for standard input; "
        "with --out folders, too",
    )
    add_server_options(parser)
    add_network_option(parser)
    add_video_options(parser)
    add_people_options(parser)
    for name, (suffix, what) in FILES.items():
        parser.add_argument(f"--{name}", type=output_file(suffix), help=f"write {what} here")
    add_folder_options(parser)
    add_output_options(parser)
    return parser


def add_people_options(parser: argparse.ArgumentParser) -> None:
    """Add whom to follow, and how finely to look at time."""
    usual = Options()
    parser.add_argument(
        "--people",
        type=number(int, least=1),
        help="give no more than so many, those seen most; 1 follows the largest face from the "
        "start to the end, through cuts (default: everyone)",
    )
    parser.add_argument(
        "--window",
        type=number(float, least=0),
        default=usual.window,
        help="seconds of a window of the timeline, 0 for none (default: %(default)g)",
    )
    parser.add_argument(
        "--step",
        type=number(float, least=0.01),
        default=usual.step,
        help="seconds from a window to the next (default: %(default)g)",
    )
    parser.add_argument(
        "--min-coverage",
        type=number(float, least=0, most=1),
        default=usual.min_coverage,
        help="leave out who is seen in a smaller part of the frames, 0 to 1 (default: %(default)g)",
    )


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Add how folders and live sources are dealt with."""
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for results of many sources: a JSON and CSVs a video, summary.csv, "
        "failed.csv; the same command does what is left",
    )
    parser.add_argument(
        "--shard",
        type=shard,
        default=(0, 1),
        metavar="I/N",
        help="take every Nth video alone, with --out: for arrays of jobs",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="print as it happens, one line of JSON a person and step; cameras and streams are "
        "live anyway",
    )
    parser.add_argument(
        "--duration", type=number(float, least=0.1), help="seconds after which a live source ends"
    )


def options_of(args: argparse.Namespace) -> Options:
    """Turn the command line into Options."""
    return Options(
        fps=args.fps,
        max_frames=args.max_frames,
        people=args.people,
        window=args.window,
        step=args.step,
        min_coverage=args.min_coverage,
    )


def run(args: argparse.Namespace) -> int:
    """Analyse the sources, print the answers, write the files that were asked for."""
    progress = sys.stderr.isatty()
    if args.out is None and not args.live:
        for source in args.sources:
            check(source)
    with TritonClient(args.url, args.model, args.timeout, access_of(args)) as client:
        if args.out is not None:
            return run_folder(args, client, progress)
        if args.live:
            return run_live(args, client)
        for source in args.sources:
            analysis = analyse(source, client, options_of(args), progress=progress)
            show(analysis, args)
            write_files(analysis, source, args, progress)
    return 0


def check(source: str) -> None:
    """Have a bad file told at once, server or no server; pipes and URLs are opened only once."""
    if source != "-" and not is_pipe(source) and not is_stream(source):
        with Video(source) as video:
            video.info()


def is_pipe(source: str) -> bool:
    """Tell what can be read once alone."""
    return source == "-" or Path(source).is_fifo()


def show(analysis: Analysis, args: argparse.Namespace) -> None:
    """Print an answer."""
    if args.json:
        print(analysis.to_json(), flush=True)
        return
    if len(args.sources) > 1:
        print(f"{analysis.source.name}:")
    print(analysis.to_text(), flush=True)


def write_files(analysis: Analysis, source: str, args: argparse.Namespace, progress: bool) -> None:
    """Write the files that were asked for."""
    if args.csv:
        from clients.reports.tables import write_csv

        write_csv(analysis, args.csv)
    if args.report:
        from clients.reports.page import write_page

        write_page(analysis, source, args.report)
    if args.plot:
        from clients.reports.plot import plot  # slow to import, and not always wanted

        plot(analysis, source, args.plot)
    if args.annotate:
        from clients.reports.annotate import annotate

        annotate(analysis, source, args.annotate, progress=progress)


def run_folder(args: argparse.Namespace, client: TritonClient, progress: bool) -> int:
    """Analyse every video of folders; say where the answers are."""
    from clients.folder import Shard
    from clients.folder import run as run_all

    index, count = args.shard
    part = Shard(index=index, count=count)
    failed = run_all(
        [Path(source) for source in args.sources],
        args.out,
        client,
        options_of(args),
        shard=part,
        progress=progress,
    )
    print(f"results: {args.out}")
    if failed:
        print(
            f"predict: {failed} failed; {args.out}/failed{part.name}.csv says why", file=sys.stderr
        )
    return 1 if failed else 0


def run_live(args: argparse.Namespace, client: TritonClient) -> int:
    """Print moments as they come; at the end, after --duration or Ctrl-C, the summary."""
    from clients.live import Live

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends as Ctrl-C does
    with Live(args.sources[0], client, options_of(args), args.duration) as live:
        try:
            for moment in live:
                print_line(moment.to_dict())
        except KeyboardInterrupt:
            pass
        print_line(live.analysis().to_dict())
    return 0


def print_line(content: dict[str, Any]) -> None:
    """Print one JSON object on one line, at once."""
    print(json.dumps(content, ensure_ascii=False), flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; refuse what does not go together, before any work."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.live = args.live or (args.out is None and any(map(is_live, args.sources)))
    wanted = {name: path for name in FILES if (path := getattr(args, name))}
    if wanted and (len(args.sources) > 1 or args.out or args.live):
        parser.error(
            f"--{next(iter(wanted))} is of one recorded source; "
            "many go to --out, and a live one prints its answers"
        )
    if wanted and is_pipe(args.sources[0]) and set(wanted) != {"csv"}:
        parser.error("--plot, --annotate and --report read the source again; a pipe cannot be")
    named = [path.resolve() for path in wanted.values()] + [Path(args.sources[0]).resolve()]
    if len(set(named)) < len(named):
        parser.error("the video and the files to write must be different files")
    if args.live and (len(args.sources) > 1 or args.out):
        parser.error("a live source is analysed alone, and prints its answers")
    if args.duration and not args.live:
        parser.error("--duration is of live sources: add --live")
    if args.shard != (0, 1) and args.out is None:
        parser.error("--shard takes a part of the videos that go to --out; name a folder there")
    folders = [source for source in args.sources if Path(source).is_dir()]
    if folders and args.out is None:
        parser.error(f"{folders[0]} is a folder: --out names a folder for its results")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    log_steps(args.verbose)
    return run_command("predict", lambda: run(args))
