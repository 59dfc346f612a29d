"""What all commands share: the parser's head, checks of values, and the one way to end.

main(argv)  ->  make_parser, number ...  ->  run_command  ->  exit code
"""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from base.errors import FerError
from base.text import clean

FAILED = 1
INTERRUPTED = 130  # what a shell says of a command ended by Ctrl-C
TERMINATED = 143  # and by SIGTERM


def make_parser(verb: str, doc: str | None) -> argparse.ArgumentParser:
    """Make the parser of `videofer <verb>`; the module's docstring describes it."""
    return argparse.ArgumentParser(
        prog=f"videofer {verb}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


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


class Terminated(BaseException):
    """SIGTERM came: what is half written is taken away on the way out."""


def end_in_order(*_: object) -> NoReturn:
    """Answer SIGTERM."""
    raise Terminated


def run_command(verb: str, work: Callable[[], int | None], *, stopped: str = "") -> int:
    """Run a command to its end, or to one plain line that says why it has none.

    Args:
        verb: how that line begins.
        work: the command; gives its exit code, None for success.
        stopped: what to say after Ctrl-C, if anything.

    Returns:
        the exit code.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without our bars gets the numbers
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # a server's own way to end stays
        with suppress(ValueError):  # a thread other than the first sets no signals
            signal.signal(signal.SIGTERM, end_in_order)
    try:
        return work() or 0
    except Terminated:
        return TERMINATED
    except BrokenPipeError:
        # Whoever read the answer has read enough; nothing more can be printed, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (FerError, OSError) as error:  # a full disk, say
        return fail(verb, str(error))
    except KeyboardInterrupt:
        if stopped:
            print(f"\n{verb}: {stopped}", file=sys.stderr)
        return INTERRUPTED


def fail(verb: str, words: str) -> int:
    """Print the one line of an error; return the exit code."""
    print(f"{verb}: {clean(words, most=2000)}", file=sys.stderr)
    return FAILED
