"""The documents say what is so: their commands, flags, links and Python names exist.

They are short and plain, too. Nothing is run: a command line is given to its verb's own parser.
"""

import argparse
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
from conftest import ROOT

import videofer
from videofer.verbs import GROUPS, VERBS, run_verb, split

GUIDES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "weights/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]
RECORDS = [
    *(ROOT / name for name in ("CHANGELOG.md", "model_repository/README.md")),
    ROOT / "requirements" / "README.md",
    *sorted(ROOT.glob("docs/measured/*.md")),
]
REPORTS = sorted(ROOT.glob("benchmarks/results/*/*.md"))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([\w-]+):.*## ", MAKEFILE, re.M)
VARIABLES = re.findall(r"^(\w+) \?=", MAKEFILE, re.M)
FOREIGN_FLAGS = {"--model-config-name"}  # Triton's
MOST_LINES = 150  # of the README
MOST_WORDS = 16  # of a sentence, on average
MOST_SEMICOLONS = 2  # of a page


def named(path: Path) -> str:
    """How a test calls a document."""
    return str(path.relative_to(ROOT))


class Caught(BaseException):
    """Stops a verb where its parser is ready."""


@cache
def parser_of(verb: str) -> argparse.ArgumentParser:
    """Take the parser that a verb would read its command line with."""

    def catch(parser, *_):
        raise Caught(parser)

    with mock.patch("argparse.ArgumentParser.parse_args", catch), pytest.raises(Caught) as caught:
        run_verb(verb, [])
    return caught.value.args[0]


def flags_of(verb: str) -> set[str]:
    """Name a verb's flags."""
    return {flag for action in parser_of(verb)._actions for flag in action.option_strings}


def blocks(text: str, kind: str) -> list[str]:
    """Take the fenced blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.M | re.S)


def spans(text: str) -> list[str]:
    """Take the code within sentences and tables."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """Yield the words of every command, and whether they are a whole command line."""
    for block in blocks(text, "console"):
        for line in block.replace("\\\n", "").splitlines():
            if line.startswith("$ "):
                yield shlex.split(line[2:], comments=True), True
    for span in spans(text):
        if re.match(r"(make|videofer|clients/predict\.py)( |$)", span):
            yield shlex.split(span), False


def check(words: list[str], whole: bool) -> None:
    """Hold one command against the Makefile, the verbs and their parsers."""
    if words[0] == "make":
        check_make(words[1:], whole)
    elif words[0] == "videofer":
        name, rest = split(words[1:])
        if name in VERBS:
            check_verb(name, rest, whole)
        else:
            first = [*rest, "--help"][0]
            assert first in ("--help", "--version") or first.startswith("<") or name in GROUPS
    elif words[0] == "clients/predict.py":
        check_verb("predict", words[1:], whole)


def check_make(words: list[str], whole: bool) -> None:
    """Hold make's targets and variables against the Makefile; ARGS against the target's verb."""
    targets = [word for word in words if "=" not in word]
    assert set(targets) <= set(TARGETS)
    for word in words:
        variable, is_set, value = word.partition("=")
        if not is_set:
            continue
        assert variable in VARIABLES
        if variable == "ARGS" and value != "...":
            (target,) = targets
            verb = {"bench": "bench load"}.get(target, target.replace("bench-", "bench "))
            if verb in VERBS:
                check_verb(verb, shlex.split(value), whole)


def check_verb(verb: str, words: list[str], whole: bool) -> None:
    """Hold a verb's words against its parser: all of them, or the flags of a part."""
    ours = words[: words.index("--")] if "--" in words else words
    given = {word.partition("=")[0] for word in ours if word.startswith("-")}
    assert given <= flags_of(verb)
    if whole:
        # docs/adding-a-network.md serves a network that is there for its test alone.
        parser_of(verb).parse_args([word.replace("two_layers", "dan") for word in words])


@pytest.mark.parametrize("path", [*GUIDES, *RECORDS[1:]], ids=named)
def test_every_command_exists_and_takes_its_flags(path):
    for words, whole in commands(path.read_text()):
        try:
            check(words, whole)
        except (AssertionError, SystemExit) as error:
            pytest.fail(f"{named(path)}: {shlex.join(words)}: {error!r}")


@pytest.mark.parametrize("path", GUIDES, ids=named)
def test_every_flag_is_one_of_a_verb(path):
    known = {"-V", "--version", *FOREIGN_FLAGS}.union(*map(flags_of, VERBS))
    for span in spans(path.read_text()):
        if re.match(r"--[a-z]", span):
            assert re.split("[ =]", span)[0] in known, span


@pytest.mark.parametrize("path", GUIDES, ids=named)
def test_every_name_of_videofer_is_documented_api(path):
    for block in blocks(path.read_text(), "python"):
        assert set(re.findall(r"\bvideofer\.(\w+)", block)) <= set(videofer.__all__)


def anchors(path: Path) -> set[str]:
    """Name the headings of a page as links do."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.M
    )
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", [*GUIDES, *RECORDS, *REPORTS], ids=named)
def test_every_link_leads_somewhere(path):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
        place, _, anchor = link.partition("#")
        target = (path.parent / place) if place else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def sentences(text: str) -> list[str]:
    """Take a page's prose apart: no code blocks, tables, pictures or headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    text = re.sub(r"^( {4}|\||#|!\[).*$", "", text, flags=re.M)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    pieces = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    joined = [" ".join(piece.split()).removeprefix("- ") for piece in pieces]
    return [
        s for piece in joined for s in re.split(r"(?<=[.!?])[*)\"]* (?=[A-Z`*]|code)", piece) if s
    ]


@pytest.mark.parametrize("path", GUIDES, ids=named)
def test_sentences_are_short(path):
    found = sentences(path.read_text())
    words = sum(len(sentence.split()) for sentence in found)
    assert words <= MOST_WORDS * len(found), f"{words / len(found):.1f} words a sentence"
    assert " ".join(found).count(";") <= MOST_SEMICOLONS


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES
