"""What `pip install .` puts on a machine: all of the packages, visible to type checkers, and no framework."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ict_core

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"ict_core": "ict_core", "backends": "ict_backends", "cli": "ict_cli"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FRAMEWORKS = {"torch", "jax", "flax", "optax"}
# A checker reads the types of a user's own arrays through the functions of the core.
USER_CODE = """
from typing import Any
import numpy as np
import ict_core as ict
from ict_backends import load

class Tensor:
    pass

def network(x_in: Tensor, c_noise: Tensor, condition: Any, /) -> Tensor:
    return x_in

x, sigma = Tensor(), Tensor()
noise = ict.NoiseConfig()
f = noise.consistency_function(network)
reveal_type(ict.pseudo_huber(x, x, c=0.1))
reveal_type(ict.scalings(sigma).c_skip)
reveal_type(f(x, sigma))
reveal_type(ict.consistency_loss(f, ict.teacher_of(f), x, x, sigma, sigma, sigma, c=0.1).mean)
reveal_type(noise.sample(f, [x]))
reveal_type(ict.multistep_sample(f, [x, x], [80.0, 1.0]))
reveal_type(ict.make_grid(11).levels(x).weight)
reveal_type(ict.karras_sigmas(11))
reveal_type(ict.interval_probabilities(np.ones(3)))
ict.pseudo_huber(x, x)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the package is installed as a user would, without what it depends on."""
    pytest.importorskip("setuptools", reason="no setuptools here, which environments of Python 3.12 lack")
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in (*FOLDERS, "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, capture_output=True)
    return site


def test_nothing_is_left_behind(site: Path) -> None:
    for folder, package in FOLDERS.items():
        kept = {".py", ".toml", ".typed"}
        files = {p.relative_to(ROOT / folder) for p in (ROOT / folder).rglob("*") if p.suffix in kept}
        installed = {p.relative_to(site / package) for p in (site / package).rglob("*") if p.suffix in kept}
        assert files == installed
        assert Path("py.typed") in installed


def test_a_checker_sees_the_types_of_the_users_arrays(site: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER_CODE)
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--follow-imports=silent", "user.py"]
    environment = {**os.environ, "MYPYPATH": str(site)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False).stdout
    seen = re.findall(r'Revealed type is "([^"]*)"', found)
    assert seen[:7] == ["user.Tensor"] * 7, found
    assert all(kind.startswith("numpy.ndarray[") for kind in seen[7:])
    errors = [line for line in found.splitlines() if ": error:" in line]
    assert len(errors) == 1, found
    assert 'Missing named argument "c" for "pseudo_huber"' in errors[0]


def test_the_version_is_that_of_the_package(site: Path) -> None:
    (metadata,) = site.glob("ict-*.dist-info/METADATA")
    assert f"\nVersion: {ict_core.__version__}\n" in metadata.read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {ict_core.__version__}" in changelog


def test_without_extras_there_is_no_framework() -> None:
    needed = {re.split(r"[<>=!~\[ ]", need)[0] for need in PROJECT["dependencies"]}
    assert not needed & FRAMEWORKS
    assert {"numpy", "array-api-compat"} <= needed


def test_the_command_needs_no_framework_to_answer(site: Path) -> None:
    """As in an environment without torch and JAX: their import fails."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({sorted(FRAMEWORKS)}))"
    for arguments, says in (
        (["--version"], ict_core.__version__),
        (["show", "cifar10"], "one training step"),
        (["train", "--preset", "digits"], "pip install 'ict[torch]'"),
    ):
        code = f"{hide}; sys.argv = {['ict', *arguments]}; from ict_cli.main import run; run()"
        found = subprocess.run([sys.executable, "-c", code], cwd=site, capture_output=True, text=True, check=False)
        assert says in found.stdout + found.stderr
        assert "Traceback" not in found.stderr


def test_the_documented_install_is_one_that_checkers_see() -> None:
    """An editable install is found by a hook at import, which mypy and editors do not run."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert "pip install -e" not in page.read_text(encoding="utf-8"), page
