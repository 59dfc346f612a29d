"""What a user meets first is true: the Makefile's help, the pinned packages, the CI script.

The documents have tests of their own: test_documents.py.
"""

import re
import subprocess
import tomllib

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([\w-]+):.*## ", MAKEFILE, re.M)


def test_make_alone_prints_every_command():
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\S+)", printed, re.M) == TARGETS


def test_every_requirement_is_pinned_to_what_the_project_asks_for():
    pins = {}
    for name in ("project.txt", "detector.txt"):
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            package, number = line.split("==")
            pins[canonicalize_name(package)] = number
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras.pop("gpu")  # TensorRT's version is the server's, not ours to pin
    for text in [*project["dependencies"], *(r for extra in extras.values() for r in extra)]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_ci_runs_what_the_readme_promises():
    script = (ROOT / ".ci" / "run").read_text()
    for command in ("make lint", "make check-engines", "make test"):
        assert command in script
