"""Importing any module changes nothing in the process that it is imported into."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from page_faults import PAGES, SOURCE

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"ict_core": "ict_core", "backends": "ict_backends", "cli": "ict_cli"}
# `__main__` runs the command line.
MODULES = [
    ".".join((package, *(part for part in path.relative_to(ROOT / folder).with_suffix("").parts if part != "__init__")))
    for folder, package in PACKAGES.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "__main__.py"
]

# What a program of somebody's own has set up before it imports ours, and finds afterwards.
STATE = """
import importlib, json, locale, logging, os, signal, sys, threading, warnings
import array_api_compat.torch, einops, flax.nnx, jax, matplotlib, numpy, optax, torch, torch.distributed.fsdp
import click, PIL.ImageCms, safetensors.numpy, tqdm
torch.set_num_threads(1)

def state():
    return {
        "environment": dict(os.environ),
        "warning filters": [repr(f) for f in warnings.filters],
        "threads": sorted(t.name for t in threading.enumerate()),
        "signals": [repr(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "logging": [repr(logging.root.handlers), logging.root.level, logging.getLogger("PIL").level,
                    [repr(h) for h in logging.getLogger("ict_backends").handlers]],
        "folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "hooks": [repr(sys.excepthook), repr(sys.displayhook), sys.getrecursionlimit()],
        "numpy": [repr(numpy.geterr()), repr(numpy.get_printoptions())],
        "torch": [torch.get_num_threads(), torch.get_num_interop_threads(), str(torch.get_default_dtype()),
                  torch.is_grad_enabled(), torch.get_float32_matmul_precision(), torch.initial_seed(),
                  torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()],
        "jax": {k: repr(v) for k, v in jax.config.values.items()},
        "allocator keeps what is freed": faults() < PAGES / 2,
    }

before = state()
for module in sys.argv[1:]:
    importlib.import_module(module)
after = state()
print(json.dumps({name: [before[name], after[name]] for name in before if before[name] != after[name]}))
"""


def changes(*modules: str, extra: str = "") -> dict[str, object]:
    """What importing modules changes in a process of its own, by name: before and after."""
    script = f"{SOURCE}\nPAGES = {PAGES}\n" + STATE.replace("after = state()", f"{extra}\nafter = state()")
    done = subprocess.run([sys.executable, "-c", script, *modules], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_every_module_changes_nothing_in_the_process() -> None:
    assert len(MODULES) > 90
    assert changes(*MODULES) == {}


CHANGES = {
    "environment": "os.environ['A'] = 'b'",
    "warning filters": "warnings.simplefilter('ignore')",
    "threads": "threading.Thread(target=threading.Event().wait, daemon=True, name='x').start()",
    "signals": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "logging": "import ict_backends.console; ict_backends.console.show_on_stderr()",
    "torch": "torch.set_num_threads(2)",
    "jax": "from ict_backends.jax import tune_process; tune_process('cpu')",
    "allocator keeps what is freed": "from ict_backends.torch import tune_process; tune_process('cpu')",
}


def test_the_check_finds_what_is_changed() -> None:
    assert changes("ict_core", extra="\n".join(CHANGES.values())).keys() == CHANGES.keys()
