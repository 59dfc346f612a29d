"""The commands: `videofer <verb>` -> the module that does it, loaded when it is asked for.

    videofer predict video.mp4  ->  split  ->  prepare  ->  clients.verbs.predict.main

A module of the table has `main(argv) -> exit code`, and its parser calls itself `videofer <verb>`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

from base import ROOT
from base.command import fail
from videofer import __version__
from videofer.environment import keep_memory, set_folders

BAD_USAGE = 2


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One command.

    Args:
        module: whose `main` it is.
        help: one line.
        extra: of the package, whose requirements it needs beside the client's.
        installed: whether it works where the package was installed without its checkout.
        trains: whether it works on torch tensors, step by step, for a long time.
    """

    module: str
    help: str
    extra: str = "export"
    installed: bool = False
    trains: bool = False


VERBS: Mapping[str, Verb] = {
    "predict": Verb(
        module="clients.verbs.predict",
        help="say who is in a video, when, and with which emotion",
        extra="pictures",
        installed=True,
    ),
    "saliency": Verb(
        module="clients.verbs.saliency",
        help="map where in a face a network reads the emotion",
        extra="pictures",
        installed=True,
    ),
    "networks": Verb(
        module="clients.verbs.networks",
        help="list the networks that a server offers",
        extra="pictures",
        installed=True,
    ),
    "serve": Verb(module="serving.command", help="start a Triton server here"),
    "export": Verb(module="export.command", help="make what Triton serves from checkpoints"),
    "calibrate": Verb(module="export.calibrate", help="measure the ranges that INT8 needs"),
    "engines": Verb(module="export.to_plan", help="build TensorRT's plans on this GPU"),
    "check-engines": Verb(
        module="export.check_engines", help="compile the plans' graphs without a GPU"
    ),
    "parity": Verb(module="export.parity", help="compare every precision with the checkpoint"),
    "train": Verb(module="training.command", help="train a network on labelled faces", trains=True),
    "evaluate": Verb(
        module="training.evaluate", help="measure a checkpoint on labelled faces", trains=True
    ),
    "crossval": Verb(
        module="training.crossval", help="train and measure FANs by subject", trains=True
    ),
    "bench load": Verb(
        module="benchmarks.load", help="how fast a server answers, and where the time goes"
    ),
    "bench peers": Verb(
        module="benchmarks.peers", help="the same network in other engines and servers"
    ),
    "bench pipeline": Verb(
        module="benchmarks.pipeline", help="the way from video to answer, stage by stage"
    ),
    "bench quick": Verb(module="benchmarks.quick", help="two minutes: ratios now and before"),
}
GROUPS = {name.split()[0] for name in VERBS if " " in name}
OURS = {"base", "networks", *(verb.module.split(".")[0] for verb in VERBS.values())}


def run(*arguments: object) -> int:
    """Run a command as a shell would: `run("export", "--model", "dan")`; give its exit code."""
    return main([str(argument) for argument in arguments])


def main(argv: Sequence[str] | None = None) -> int:
    """Find the verb, and hand the rest of the command line to its module."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-V", "--version"):
        print(f"videofer {__version__}")
        return 0
    name, rest = split(words)
    if name in VERBS:
        return run_verb(name, rest)
    if name in ("", *GROUPS) and (not rest or rest[0] in ("-h", "--help")):
        print(describe(name))
        return 0 if rest else BAD_USAGE
    unknown = " ".join(filter(None, [name, *rest[:1]]))
    return complain(unknown)


def split(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split a command line into its verb, of one word or two, and the verb's arguments.

    What is no verb is "" or the name of a group, and the rest.
    """
    for count in (2, 1):
        name = " ".join(words[:count])
        if len(words) >= count and (name in VERBS or name in GROUPS):
            return name, list(words[count:])
    return "", list(words)


def run_verb(name: str, arguments: list[str]) -> int:
    """Load a verb's module and run it, or say in one line why it cannot run here."""
    verb = VERBS[name]
    if not verb.installed and not (ROOT / "model_repository").is_dir():
        clients = ", ".join(other for other, each in VERBS.items() if each.installed)
        return fail(
            f"videofer {name}",
            f"works in a checkout of the project; this is an installed client ({clients})",
        )
    set_folders()
    if verb.trains:
        keep_memory()
    try:
        return int(import_module(verb.module).main(arguments))
    except ModuleNotFoundError as error:
        lacks = str(error.name).partition(".")[0]
        if lacks in OURS:
            raise
        return fail(
            f"videofer {name}",
            f"{sys.executable} lacks the package {lacks}; `make setup` in the checkout installs "
            f"it, or `pip install 'video-fer-triton[{verb.extra}]'`",
        )


def describe(group: str = "") -> str:
    """Write the help: every verb, or those of a group, one a line."""
    shown = {n: v for n, v in VERBS.items() if not group or n.startswith(f"{group} ")}
    usage = f"usage: videofer {group} <verb> [options]" if group else "usage: videofer <verb> ..."
    lines = [usage, "", "The emotion of a face in a video, served by Triton.", ""]
    lines += [f"  {name:<16} {verb.help}" for name, verb in shown.items()]
    return "\n".join([*lines, "", "`videofer <verb> --help` says more. `videofer --version`."])


def complain(unknown: str) -> int:
    """Say in one line that there is no such verb, and which is nearest."""
    first = unknown.partition(" ")[0]
    near = get_close_matches(unknown, VERBS, 1, 0.5) or get_close_matches(first, VERBS, 1, 0.5)
    hint = f"did you mean `videofer {near[0]}`?" if near else "`videofer --help` lists them"
    fail("videofer", f"there is no verb {unknown!r}; {hint}")
    return BAD_USAGE
