"""Which code, versions and machine a figure comes from; every report begins with it."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

from base import ROOT

# Kinds of instructions, as reports call them -> the flags that Linux has for them.
INSTRUCTIONS = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),  # without it, int8 is multiplied in 16 bits
    "BF16": ("avx512_bf16", "amx_bf16"),
    "AMX": ("amx_int8",),
}


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name and the kinds of instructions that INT8 and BF16 depend on.

    Args:
        path: what Linux says of the processor.
    """
    lines = path.read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(facts.get("flags", "").split())
    kinds = [kind for kind, names in INSTRUCTIONS.items() if flags & set(names)]
    name = facts.get("model name", platform.machine())
    return f"{name} with {', '.join(kinds)}" if kinds else name


def provenance(*packages: str) -> str:
    """Say date, commit, processor and cores, and the versions of the packages that mattered."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=8"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return (
        f"{time.strftime('%Y-%m-%d')}, commit {commit or 'unknown'}; {cpu_name()}, "
        f"{len(os.sched_getaffinity(0))} cores; "
        + ", ".join(f"{name} {version(name)}" for name in packages)
    )
