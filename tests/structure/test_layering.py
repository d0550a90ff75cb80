"""Who may import whom: cli -> a backend -> the rooms of ict_backends, each floor from those below -> ict_core."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The installed name of each top folder.
PACKAGES = {"ict_core": "ict_core", "backends": "ict_backends", "cli": "ict_cli"}
BACKENDS = {"torch", "jax"}
FRAMEWORKS = {"torch", "jax", "flax", "optax"}
# The rooms of ict_backends, each with those that it may import. All may import the ground floor, the files that lie in
# no room, which import none of them.
ROOMS: dict[str, set[str]] = {"data": set(), "networks": set()}
ROOMS["runs"] = {"data"}
ROOMS["sampling"] = {"data", "runs"}
ROOMS["measuring"] = {"data", "runs", "sampling"}
ROOMS["exchange"] = {"networks", "runs"}
ROOMS["training"] = {"data", "networks", "runs", "sampling", "measuring"}
ROOMS["reports"] = {"networks", "runs", "sampling", "measuring", "training"}
ROOMS["python"] = {"data", "networks", "runs", "sampling", "measuring", "exchange", "training"}
ROOMS["torch"] = ROOMS["jax"] = {"data", "networks", "runs", "sampling", "training"}
GROUND = {path.stem for path in (ROOT / "backends").glob("*.py")} - {"__init__"}
# What only names types and runs none of their code: the contract, for what the rooms hand to a backend; and the door,
# for `load` and `train`, which it imports when they are asked for.
CONTRACTS = {"ict_backends.protocols", "ict_backends"}
# The only file of cli/ that others of it import.
SHARED_COMMAND = "ict_cli.options"
# These run commands by their names.
STARTERS = {"ict_cli.main", "ict_cli.__main__", "ict_cli.child"}
# What the mathematics may import beside the standard library and itself.
CORE_NEEDS = {"numpy", "array_api_compat"}


def modules() -> Iterator[tuple[str, str]]:
    """Every source file as (installed module name, text)."""
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *(p for p in parts if p != "__init__"))), path.read_text(encoding="utf-8")


def imported(text: str) -> set[str]:
    """The modules that a source text imports anywhere, functions included; relative imports as they stand."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "ict_backends"}
    return names


def room_of(name: str) -> str:
    """The room of ict_backends that a module lies in; "" for the ground floor and for what is outside."""
    package, _, rest = name.partition(".")
    room = rest.split(".")[0]
    return room if package == "ict_backends" and room in ROOMS else ""


def run_text(module: str, text: str) -> str:
    """The text of a module without what its type checker only sees, where that is a contract."""
    if module not in CONTRACTS:
        return text
    tree = ast.parse(text)
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    return ast.unparse(tree)


def faults(module: str, text: str) -> list[str]:
    """What a module imports and must not."""
    package, _, rest = module.partition(".")
    inside = rest.split(".")[0] if package == "ict_backends" else ""
    found = []
    for name in sorted(imported(run_text(module, text))):
        top, _, below = name.partition(".")
        backend = below.split(".")[0] if top == "ict_backends" else ""
        wrong = {
            "relative": name.startswith("."),
            "core": package == "ict_core"
            and top not in {*sys.stdlib_module_names, *CORE_NEEDS, "ict_core", "__future__"},
            "back": package == "ict_backends" and top == "ict_cli",
            "other backend": inside in BACKENDS and backend in BACKENDS - {inside},
            "backend": inside not in BACKENDS and backend in BACKENDS,
            "framework": inside not in BACKENDS and top in FRAMEWORKS,
            "other framework": inside == "torch" and top in FRAMEWORKS - {"torch"},
        }
        wrong["other framework"] |= inside == "jax" and top == "torch"
        room = room_of(module)
        wrong["room above"] = package == "ict_backends" and room_of(name) not in {"", room, *ROOMS.get(room, set())}
        commands = name.startswith("ict_cli.") and module not in STARTERS
        wrong["another command"] = commands and name not in (SHARED_COMMAND, module)
        found += [f"{module} imports {name} ({reason})" for reason, bad in wrong.items() if bad]
    return found


def test_every_import_points_down() -> None:
    assert [fault for module, text in modules() for fault in faults(module, text)] == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("ict_core.loss", "import torch"),
        ("ict_core.loss", "from ict_backends.data.dataset import load_data"),
        ("ict_core.loss", "import scipy"),
        ("ict_core.loss", "from .config import Config"),
        ("ict_backends.data.dataset", "import ict_cli.main"),
        ("ict_backends.data.dataset", "from ict_backends import torch"),
        ("ict_backends.data.dataset", "def f():\n    import jax"),
        ("ict_backends.torch.step", "import ict_backends.jax.step"),
        ("ict_backends.torch.step", "import optax"),
        ("ict_backends.jax.step", "from torch import nn"),
        ("ict_cli.train", "from ict_backends.torch import train"),
        ("ict_cli.train", "import torch"),
        ("ict_cli.ablate", "from ict_cli.train import train_command"),
        ("ict_cli.options", "import ict_cli.train"),
        ("ict_backends.data.dataset", "from ict_backends.runs.folder import RunDir"),
        ("ict_backends.networks.cost", "from ict_backends.data import dataset"),
        ("ict_backends.training.recorder", "from ict_backends.reports.page import build_report"),
        ("ict_backends.torch.bench", "from ict_backends.reports.benchmark import measure"),
        ("ict_backends.errors", "import ict_backends.data.dataset"),
        ("ict_backends.protocols", "from ict_backends.runs.folder import RunDir"),
        ("ict_backends", "from ict_backends.python.model import load"),
        ("ict_backends.sampling.choices", "from ict_backends.python.model import load"),
    ],
)
def test_the_check_finds_a_wrong_import(module: str, text: str) -> None:
    assert len(faults(module, text)) >= 1


def test_the_rooms_are_those_that_there_are() -> None:
    folders = {path.name for path in (ROOT / "backends").iterdir() if (path / "__init__.py").is_file()}
    assert folders == ROOMS.keys()
    listed = re.findall(r'"ict_backends\.(\w+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(listed) == ROOMS.keys()


def test_the_ground_floor_is_what_every_room_may_use() -> None:
    assert {
        "arrays",
        "console",
        "environment",
        "errors",
        "files",
        "images",
        "protocols",
        "randomness",
        "timing",
    } == GROUND


def test_only_load_backend_knows_the_backends_names() -> None:
    """Outside ict_backends/__init__.py and the backend's own folder, no text is compared with a backend's name."""
    found = []
    for module, text in modules():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Compare):
                sides = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                found += [module] * bool(sides & BACKENDS)
    assert found == []


def test_only_some_modules_start_processes() -> None:
    starting = {module for module, text in modules() if imported(text) & {"subprocess", "multiprocessing"}}
    assert starting == {
        "ict_backends.data.decode_pool",
        "ict_backends.reports.host",
        "ict_backends.reports.plain_version",
        "ict_cli.ablate",
    }


def test_only_commands_print() -> None:
    """Library code logs by way of ict_backends.console, whose handler a command installs."""
    printing = set()
    for module, text in modules():
        calls = (node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
        names = {function.id for function in calls if isinstance(function, ast.Name)}
        if "print" in names or "click" in imported(text):
            printing.add(module.partition(".")[0])
    assert printing == {"ict_cli"}


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import ict_core", {"numpy", "array_api_compat"}),
        ("import ict_cli.main, ict_cli.train, ict_cli.sample, ict_cli.show, ict_cli.eval", None),
        ("from ict_core import load_preset; load_preset('digits')", {"numpy", "array_api_compat"}),
        ("import ict_backends", None),
    ],
)
def test_imports_load_no_framework(statement: str, allowed: set[str] | None) -> None:
    """In a process of its own, with site-packages at hand."""
    script = f"import sys; before = set(sys.modules); {statement}; print('\\n'.join(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    tops = {name.partition(".")[0] for name in done.stdout.split()}
    assert not tops & {*FRAMEWORKS, "sklearn", "matplotlib", "scipy"}
    if allowed is not None:
        installed = {name for name in tops if name not in sys.stdlib_module_names and not name.startswith("_")}
        assert installed <= {*allowed, "ict_core"}
