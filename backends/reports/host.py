"""Facts about where a measurement was made: the machine, the versions of libraries, the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from ict_backends.environment import available_cores

_PACKAGES = ("numpy", "torch", "jax", "jaxlib", "flax", "optax")
# Environment variables that change how fast the libraries are.
_ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "JAX_NUM_CPU_DEVICES",
    "JAX_PLATFORMS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "XLA_FLAGS",
)
# Numbers that tell apart kinds of processor of the same name, with their names in /proc/cpuinfo.
_KIND = {"family": "cpu family", "model": "model"}
# Instruction sets that decide how fast matrix products are.
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")


def _cpuinfo() -> dict[str, str]:
    """The lines of /proc/cpuinfo about the first processor, by name; empty on systems without that file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def describe_machine() -> dict[str, Any]:
    """The processor, memory, operating system and relevant environment variables of this machine."""
    known = _cpuinfo()
    return {
        "cpu": known.get("model name", platform.processor()),
        # Processors of very different speed have the same name.
        **{f"cpu_{key}": int(known[name]) for key, name in _KIND.items() if known.get(name, "").isdecimal()},
        "cpu_features": [flag for flag in _FEATURES if flag in known.get("flags", "").split()],
        "cores": available_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": platform.platform(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k in _ENVIRONMENT},
    }


def describe_versions() -> dict[str, str]:
    """The version of Python, and of each relevant library that is installed, by name."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_commit(folder: Path) -> dict[str, Any] | None:
    """The commit of the sources in a folder, and whether files differ from it; None if git knows no commit."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": git("status", "--porcelain", "-uno") != ""}
    except (OSError, subprocess.CalledProcessError):
        return None
