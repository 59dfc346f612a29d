"""Which code, versions and machine a figure comes from; every report begins with it."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

from base import ROOT


def cpu_name() -> str:
    """The processor's name, and whether it multiplies int8 in one step, as the system says."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    vnni = " with AVX-512 VNNI" if "avx512_vnni" in facts.get("flags", "").split() else ""
    return facts.get("model name", platform.machine()) + vnni


def provenance(*packages: str) -> str:
    """Say date, commit, processor and cores, and the versions of the packages that mattered."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=8"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return (
        f"{time.strftime('%Y-%m-%d')}, commit {commit or 'unknown'}; {cpu_name()}, "
        f"{len(os.sched_getaffinity(0))} cores; "
        + ", ".join(f"{name} {version(name)}" for name in packages)
    )
