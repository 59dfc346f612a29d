"""What the commands of this room share: options of the server, the video and the output.

predict.py, saliency.py, networks.py  ->  add_..._options  ->  base.command.run_command
"""

import argparse
import logging
import os
from collections.abc import Callable
from pathlib import Path

from base.command import number
from clients.access import Access, read_header, read_token


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
    """Add which server to ask, and for how long."""
    parser.add_argument(
        "--url",
        type=host_port,
        default=os.environ.get("TRITON_URL", "localhost:8001"),
        help="host:port of Triton's gRPC endpoint (default: $TRITON_URL, else localhost:8001)",
    )
    parser.add_argument(
        "--timeout",
        type=number(float, least=0.001),
        default=60,
        help="seconds that one request may take (default: %(default)s)",
    )

    gateway = parser.add_argument_group(
        "a gateway in front of it",
        "A token is read from $TRITON_TOKEN or a file, never from the command line.",
    )
    gateway.add_argument("--tls", action="store_true", help="encrypt the connection")
    gateway.add_argument(
        "--ca", type=Path, help="PEM file of who signed its certificate (default: the usual ones)"
    )
    gateway.add_argument("--cert", type=Path, help="PEM file of the client's own certificate")
    gateway.add_argument("--key", type=Path, help="PEM file of that certificate's private key")
    gateway.add_argument(
        "--token-file", type=Path, help="file of a token, sent as authorization: Bearer <token>"
    )
    gateway.add_argument(
        "--header",
        type=header,
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="send this with every request; may be repeated",
    )


def header(text: str) -> tuple[str, str]:
    """Read a header, in argparse's way."""
    try:
        return read_header(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def access_of(args: argparse.Namespace) -> Access:
    """Turn what add_server_options added into an Access."""
    return Access(
        tls=args.tls,
        ca=args.ca,
        cert=args.cert,
        key=args.key,
        token=read_token(args.token_file),
        headers=dict(args.header),
    )


def add_network_option(parser: argparse.ArgumentParser) -> None:
    """Add which of the server's networks to ask."""
    parser.add_argument(
        "--model",
        default="fan",
        help="network to ask: fan, dan, ran, deep_emotion, fan_fusion, or whatever else the server "
        "has (default: %(default)s)",
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


def log_steps(verbose: bool) -> None:
    """Log to stderr: each step, or warnings alone."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
