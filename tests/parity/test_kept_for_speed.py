"""What is kept from one step, or one process, to the next because it is slow to make again."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from page_faults import PAGES, SOURCE

from ict_backends.jax import device
from ict_backends.jax.parallel import Processes
from ict_backends.jax.train import report_first_call

# In a process of its own: which blocks an allocator gives back depends on what was allocated before.
FAULTS = f"""
{SOURCE}
import sys
from ict_backends.torch.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_freed_memory_is_taken_again_without_new_pages() -> None:
    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < PAGES / 100
    assert faults("") > PAGES / 2  # what it is without


def test_compiled_steps_are_kept_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        device.keep_compiled()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "ict" / "jax")
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
        device.keep_compiled()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_only_the_first_step_tells_of_compiling_and_only_in_the_first_process(
    capfd: pytest.CaptureFixture[str],
) -> None:
    mesh = device.check_device("cpu")
    for rank in range(2):
        advance = report_first_call(lambda *given: given, Processes(mesh, rank, 2))
        assert advance(1, 2, None) == (1, 2, None)
        assert advance(3, 4, np.ones(1))[:2] == (3, 4)
        assert capfd.readouterr().err.count("compiled the step in") == (rank == 0)
