"""Runs that somebody else has made, or that a disk has spoilt: one line for whatever their small files hold."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Ict, Refused
from tiny import TINY

from ict_backends.runs.folder import RunDir

COMMANDS = {
    "sample": ["sample", "{run}", "--out", "{out}.png", "--num", "1"],
    "eval": ["eval", "{run}", "--num", "70", "--no-halves"],
    "report": ["report", "{run}", "--out", "{out}.html"],
    "export": ["export", "diffusers", "{run}", "--out", "{out}"],
    "resume": ["train", "--resume", "--out", "{run}"],
    "init": ["train", "--init", "{run}", "--out", "{out}", "--device=cpu", "--steps=1"],
    "show": ["show", "{run}"],
}


def words(command: str, run: Path, out: Path) -> list[str]:
    return [word.format(run=run, out=out) for word in COMMANDS[command]]


@pytest.fixture
def run(tmp_path: Path, digits_run: Path) -> RunDir:
    """A run of an earlier version, whose checkpoint does not say which settings it was written with."""
    run = RunDir(Path(shutil.copytree(digits_run, tmp_path / "run")))
    state = run.latest_checkpoint() / "state.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps({name: content[name] for name in ("format", "step", "sha256")}))
    return run


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Refuse this process 8 GiB more than it has: what is refused in time asks for none."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**33, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


ABSURD = {
    "channels": ("channels = 8\n", "channels = 1000000000\n", "does not fit the network|this machine has"),
    "blocks": ("blocks = 1\n", "blocks = 1000000000\n", "network.blocks must be >= 1 and <= 1000, not 1000000000"),
    "levels": ("channel_mult = [1, 1]\n", f"channel_mult = {[1] * 20_000}\n", "network.channel_mult must be a list of"),
    "classes": ("num_classes = 0\n", "num_classes = 1000000000\n", "network.num_classes must be .*<= 1000000"),
    "pixels": ("shape = [1, 8, 8]\n", "shape = [1, 1048576, 1048576]\n", "data.shape must be .*each >= 1 and <= 16384"),
    "grey": ("shape = [1, 8, 8]\n", "shape = [16000, 8, 8]\n", "does not fit|images are 8x8|images of .1, 8, 8."),
    "stages": ("s1 = 160\n", "s1 = 1000000000000\n", "curriculum.s1 must be .*<= 100000"),
    "steps": ("total_steps = 30\n", f"total_steps = {10**30}\n", "train.total_steps must be an integer of 64 bits"),
    "digits": ("total_steps = 30\n", f"total_steps = {'9' * 9999}\n", "is not a TOML file"),
    "hexadecimal": (
        "total_steps = 30\n",
        f"total_steps = 0x{'f' * 9999}\n",
        "an integer of 64 bits, not a int",
    ),
    "rate": ("learning_rate = 0.01\n", f"learning_rate = {10**400}\n", "an integer of 64 bits"),
    "a word": ("channels = 8\n", 'channels = "eight"\n', "network.channels must be an integer"),
    "a table": ("channels = 8\n", "channels = {a = 1}\n", "network.channels must be an integer"),
    "depth": ("channels = 8\n", f"channels = {'[' * 9999}{']' * 9999}\n", "is not a TOML file"),
    "zeros": ("channels = 8\n", "channels = 8\0\n", "is not a TOML file"),
    "a line break": ("channels = 8\n", '"chan\\nnels" = 8\n', "unknown key network.chan nels"),
    "no UTF-8": ("channels = 8\n", "channels = 8 # \udcff\n", "is not a TOML file"),
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ABSURD)
def test_absurd_settings_are_one_line_before_memory_is_asked_for(
    ict: Ict, refused: Refused, tmp_path: Path, run: RunDir, name: str
) -> None:
    old, new, says = ABSURD[name]
    text = run.config_file.read_text()
    assert old in text
    run.config_file.write_bytes(text.replace(old, new).encode(errors="surrogateescape"))
    commands = set(COMMANDS)
    if says.startswith("does not fit"):
        assert ict(*words("show", run.path, tmp_path / "x")).code == 0  # it only computes the size
        commands -= {"show", "export"}  # of this family, no size can be exported
    if name == "grey":
        commands -= {"init"}  # which takes the shape from the data
    for command in sorted(commands):
        refused(1, says, *words(command, run.path, tmp_path / "x"))


def test_a_network_that_fits_no_machine_is_refused_before_there_is_a_run(refused: Refused, tmp_path: Path) -> None:
    says = r"the network has [\d,]+ parameters, which need [\d,]+ GiB, and this machine has \d+ GiB of memory"
    refused(1, says, "train", "--out", tmp_path / "run", *TINY, "--set=network.channels=4000000")


DATA = {
    "deep": "[" * 100_000,
    "deeper": '{"count":' * 100_000,
    "zeros": "\0" * 99,
    "no object": "[1]",
    "no hash": '{"count": 1797}',
    "no count": '{"sha256": null}',
    "no UTF-8": '{"\udcff": 1}',
}


@pytest.mark.parametrize("text", DATA.values(), ids=DATA)
def test_nonsense_about_the_data_is_one_line(refused: Refused, tmp_path: Path, run: RunDir, text: str) -> None:
    run.data_file.write_bytes(text.encode(errors="surrogateescape"))
    for command in ("resume", "eval"):
        refused(1, "data.json", *words(command, run.path, tmp_path / "x"))


@pytest.mark.parametrize("damaged", ["metrics", "evals"])
def test_a_damaged_record_is_refused_before_another_is_cut(
    refused: Refused, tmp_path: Path, run: RunDir, damaged: str
) -> None:
    whole = {
        "metrics": run.metrics_file.read_text() + '{"step": 99, "loss": 1.0}\n',
        "evals": '{"step": 99, "metric": "sw", "num": 9, "value": 1.0}\n',
    }
    for name, text in whole.items():
        (run.path / f"{name}.jsonl").write_text(f"damaged\n{text}" if name == damaged else text)
    says = f"{damaged}.jsonl cannot be read: line 1 is damaged"
    refused(1, says, *words("resume", run.path, tmp_path / "x"), "--steps", 31, "--device=cpu")


COUNTS = ["1" * 9999, "[1e400, 1, 1]", "[99999999999999999999, 1, 1]", '{"a": 1}', "[[1], 1, 1]", "[0.5, 1, 1]"]


@pytest.mark.parametrize("counts", COUNTS, ids=range(len(COUNTS)))
def test_nonsense_about_classes_is_as_if_nothing_were_said(
    ict: Ict, tmp_path: Path, labelled_run: Path, counts: str
) -> None:
    run = Path(shutil.copytree(labelled_run, tmp_path / "run"))
    (run / "data.json").write_text(f'{{"class_counts": {counts}}}')
    common = ("sample", run, "--num", 1, "--device", "cpu", "--out", tmp_path / "x.png")
    assert ict(*common).code == 0
    refusal = ict(*common, "--labels", "data")
    assert (refusal.code, "the run does not say how many images" in refusal.err) == (2, True)


LEVELS = ["[" * 100_000, "{}", '{"sigmas": [1e999]}', '{"sigmas": "80"}', '{"sigmas": [80, [1]]}', '{"sigmas": []}']


@pytest.mark.parametrize("text", [*LEVELS, "\0"], ids=range(len(LEVELS) + 1))
def test_nonsense_about_levels_is_one_line(refused: Refused, tmp_path: Path, run: RunDir, text: str) -> None:
    run.sigmas_file.write_text(text)
    refused(1, "sigmas.json cannot be read", *words("sample", run.path, tmp_path / "x"), "--steps", 2)


@pytest.mark.parametrize("command", ["sample", "eval", "report", "resume", "init", "show"])
def test_settings_that_lack_their_end_are_no_defaults(
    refused: Refused, tmp_path: Path, digits_run: Path, command: str
) -> None:
    run = RunDir(Path(shutil.copytree(digits_run, tmp_path / "run")))
    text = run.config_file.read_text()
    run.config_file.write_text(text[: text.index("learning_rate")])
    says = "config.toml has other settings than step_00000030 was written with: without train.learning_rate, train.warm"
    refused(1, says, *words(command, run.path, tmp_path / "x"))
