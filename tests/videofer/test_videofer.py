"""The front door: every verb is there, says what it is, and costs nothing until it is used."""

import os
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

import videofer
from videofer.verbs import GROUPS, VERBS, main

HEAVY = {"cv2", "google", "matplotlib", "numpy", "onnx", "onnxruntime", "torch", "tritonclient"}


def python(*arguments, **environment):
    """Run this Python, on the modules of this checkout."""
    own = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-P", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=own, cwd="/")


def test_help_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, verb in VERBS.items():
        assert any(line.split("  ")[1:2] == [name] and verb.help in line for line in lines), name


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_group_lists_its_own_verbs_and_no_other(group, capsys):
    assert main([group, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"videofer {group} <verb>" in said
    assert {name for name in VERBS if f"  {name} " in said} == {
        name for name in VERBS if name.startswith(f"{group} ")
    }


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_answers_help_with_its_own_name(name):
    done = python("-m", "videofer", *name.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: videofer {name} ")


def test_import_and_help_load_nothing_heavy():
    program = (
        "import sys, videofer, videofer.api; from videofer.verbs import main; main(['--help']); "
        "print({m.partition('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    done = python("-c", program)
    assert done.returncode == 0
    assert not HEAVY & set(eval(done.stderr))  # noqa: S307  a set of names, printed above


@pytest.mark.parametrize("name", videofer.__all__)
def test_every_name_of_the_api_is_there_and_explained(name):
    assert getattr(videofer, name).__doc__
    assert name in dir(videofer)


def test_other_names_are_refused_as_python_does():
    with pytest.raises(AttributeError, match="no attribute 'analyze'"):
        videofer.analyze  # noqa: B018


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["exprot"], "there is no verb 'exprot'; did you mean `videofer export`?"),
        (["bench", "quik"], "there is no verb 'bench quik'; did you mean `videofer bench quick`?"),
        (["xyzzy"], "there is no verb 'xyzzy'; `videofer --help` lists them"),
        (["--verbose"], "there is no verb '--verbose'; `videofer --help` lists them"),
    ],
)
def test_unknown_verb_is_told_in_one_line_with_the_nearest(words, said, capsys):
    assert main(words) == 2
    assert capsys.readouterr() == ("", f"videofer: {said}\n")


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"videofer {videofer.__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "videofer.__version__"


def test_package_that_is_not_installed_is_told_with_what_installs_it(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    done = python("-m", "videofer", "train", "x", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "lacks the package torch; `make setup` in the checkout installs it" in done.stderr
    assert "pip install 'video-fer-triton[export]'" in done.stderr


def test_installed_client_says_which_verbs_it_has(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("videofer.verbs.ROOT", tmp_path)
    assert main(["export"]) == 1
    assert "an installed client (predict, saliency, networks)\n" in capsys.readouterr().err


def test_run_is_the_command_line(capsys):
    assert videofer.run("--version") == 0
    assert capsys.readouterr().out == f"videofer {videofer.__version__}\n"


def test_every_room_is_packaged():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    here = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for path in ROOT.glob("*/**/__init__.py")
        if path.relative_to(ROOT).parts[0] not in ("build", "tests")
        and not path.relative_to(ROOT).parts[0].startswith(".")
    }
    assert set(packaged["packages"]) == here
