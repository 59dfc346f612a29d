"""List the networks that a server offers, one a line.

    videofer networks
    videofer networks --url gpu-box:8001 --json

Each with its versions, its labels, and what it gives beside what every network does.
"""

import argparse
import json

from base.command import make_parser, run_command
from clients.errors import ServerMismatch
from clients.offers import list_networks
from clients.verbs.options import (
    access_of,
    add_output_options,
    add_server_options,
    log_steps,
)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("networks", __doc__)
    add_server_options(parser)
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Ask the server, print what it offers."""
    networks = list_networks(args.url, args.timeout, access_of(args))
    if not networks:
        raise ServerMismatch(
            f"the server at {args.url} has no network that follows the contract; where it serves "
            "a checkout, `videofer export` and another `videofer serve` give it some"
        )
    if args.json:
        print(json.dumps([network.to_dict() for network in networks]))
    else:
        print("\n".join(network.to_text() for network in networks))


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    log_steps(args.verbose)
    return run_command("networks", lambda: run(args))
