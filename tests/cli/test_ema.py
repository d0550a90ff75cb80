"""Averages of several lengths: kept while training, chosen by --weights, and made afterwards by `ict ema`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
from tiny import TINY

from ict_backends import load
from ict_backends.exchange import averages
from ict_backends.exchange.averages import MOST_MISFIT, find_mixture, mix
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir
from ict_core import power_exponent

DEVICE = "--device=cpu"
LENGTHS = "--set=train.ema_sigma_rel=[0.05,0.10,0.07]"
KEEP = ["--set=train.checkpoint_every=4", "--set=train.keep_every=4", "--set=train.sample_every=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 120 steps on the digits that keeps three averages in each of thirty checkpoints."""
    from ict_cli.main import run as call

    path = tmp_path_factory.mktemp("runs") / "kept"
    rate = "--set=train.learning_rate=3e-3"
    with pytest.raises(SystemExit) as stop:
        call(["train", f"--out={path}", *TINY, "--steps=120", *KEEP, LENGTHS, rate, "--set=eval.every=60"])
    assert stop.value.code == 0
    return path


def without(run: Path, folder: Path, lengths: list[float]) -> Path:
    """A copy of a run, as if it had kept only averages of these lengths."""
    copy = RunDir(shutil.copytree(run, folder))
    text = copy.config_file.read_text()
    assert "ema_sigma_rel = [0.05, 0.1, 0.07]" in text
    copy.config_file.write_text(text.replace("ema_sigma_rel = [0.05, 0.1, 0.07]", f"ema_sigma_rel = {lengths}"))
    for checkpoint in [*copy.checkpoints(), *copy.best_checkpoints()]:
        state = json.loads((checkpoint / "state.json").read_text())
        state.pop("settings")  # as of a version that did not write them
        state.pop("checksum")
        (checkpoint / "state.json").write_text(json.dumps(state))
    return copy.path


def relative_error(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    assert found.keys() == expected.keys()
    off, size = (
        sum(float(np.sum(np.square(each))) for each in arrays)
        for arrays in ([found[n] - expected[n] for n in expected], expected.values())
    )
    return (off / size) ** 0.5


def test_another_length_is_what_would_have_been_kept(ict: Ict, run: Path, tmp_path: Path) -> None:
    two, out = without(run, tmp_path / "two", [0.05, 0.1]), tmp_path / "made"
    done = ict("ema", two, "--sigma-rel", 0.07, "--out", out)
    assert done.code == 0, done
    assert "the average of length 0.07 after 120 steps, of 60 averages in 30 checkpoints; misfit 0.0" in done.out
    expected = load_checkpoint(RunDir(run).latest_checkpoint()).averages
    made = load_checkpoint(RunDir(out).latest_checkpoint())
    assert relative_error(made.ema, expected["0.07"]) < 1e-4
    assert relative_error(expected["0.05"], expected["0.07"]) > 1e-3
    assert all(array.dtype == np.float32 for array in made.ema.values())
    # It is a run of the same data and settings, for every command.
    assert RunDir(out).data_file.read_bytes() == RunDir(run).data_file.read_bytes()
    assert RunDir(out).load_config() == RunDir(two).load_config()
    assert ict("sample", out, "--num", 4, "--out", tmp_path / "a.png", DEVICE).code == 0


def test_a_length_that_is_there_is_found_again_and_as_of_a_chosen_step(ict: Ict, run: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(run, tmp_path / "run"))
    assert ict("ema", f"{work}@60", "--sigma-rel", "0.10").code == 0
    made = load_checkpoint(RunDir(tmp_path / "run-ema-0.1").latest_checkpoint()).ema
    kept = load_checkpoint(RunDir(run).checkpoint_folder(60)).averages["0.1"]
    assert relative_error(made, kept) < 1e-6


def test_one_array_at_a_time_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each checkpoint is read once, for all of its averages."""
    read = []
    original = averages.stream_averages
    monkeypatch.setattr(
        averages, "stream_averages", lambda folder, *rest: read.append(folder) or original(folder, *rest)
    )
    config = RunDir(run).load_config()
    mix(config, find_mixture(RunDir(run), config, 0.12))
    assert read == RunDir(run).checkpoints()


def test_long_runs_are_compared_at_fewer_points(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 120 steps, at sixty and at thirty points: about the same factors."""
    config = RunDir(run).load_config()
    exact = find_mixture(RunDir(run), config, 0.12)
    for points in (60, 30):
        monkeypatch.setattr(averages, "_POINTS", points)
        coarse = find_mixture(RunDir(run), config, 0.12)
        assert coarse.step == exact.step == 120
        assert coarse.misfit < MOST_MISFIT
        assert coarse.misfit != exact.misfit
        factors = [[f for _, some in m.parts for f in some.values()] for m in (coarse, exact)]
        assert [sum(some) for some in factors] == pytest.approx([1, 1], rel=1e-12)
        assert factors[0] != factors[1]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_each_command_takes_an_average_by_its_length(ict: Ict, run: Path, tmp_path: Path, backend: str) -> None:
    drawn = {}
    for what, weights in ((run, "ema"), (run, "0.05"), (run, "0.10"), (f"{run}@60", "0.05"), (run, "0.050")):
        out = tmp_path / f"{len(drawn)}.npz"
        assert (
            ict("sample", what, "--num", 4, "--out", out, DEVICE, "--backend", backend, "--weights", weights).code == 0
        )
        drawn[f"{what} {weights}"] = np.load(out)["arr_0"].tobytes()
    assert len(set(drawn.values())) == 4
    assert drawn[f"{run} 0.05"] == drawn[f"{run} 0.050"]
    evaluated = ict("eval", run, "--num", 80, "--no-halves", DEVICE, "--backend", backend, "--weights", "0.05")
    assert evaluated.code == 0, evaluated
    model = load(run, backend=backend, weights=0.05, device="cpu")
    assert model.weights == "0.05"
    assert "weights averaged over the length 0.05" in repr(model)
    assert model.sample(4).tobytes() == drawn[f"{run} 0.05"]


def test_show_lists_the_averages_and_counts_them(ict: Ict, run: Path) -> None:
    shown = ict("show", run).out
    assert "weights, by --weights: ema, raw, best, 0.05 (average of this length), 0.1 (" in shown
    assert "average 0.07" in shown  # of a checkpoint's size


WORDS = "ema, raw or best, or the length of an average that train.ema_sigma_rel keeps"


@pytest.mark.parametrize(
    ("code", "says", "command"),
    [
        (
            1,
            r"--weights 0.12: checkpoint .*step_00000120 has no average of this length; it has ema, raw, 0.05",
            ["sample", "RUN", "--out", "OUT.png", "--weights", "0.12"],
        ),
        (1, "step_00000060 has no average of this length; it has ema", ["eval", "RUN@60", "--weights", "0.12"]),
        (2, f"--weights averaged must be {WORDS}", ["sample", "RUN", "--out", "OUT.png", "--weights", "averaged"]),
        (2, f"--weights 0.5 must be {WORDS}.*>= 0.001 and < 0.28", ["eval", "RUN", "--weights", "0.5"]),
        (
            2,
            f"--weights nan must be {WORDS}",
            ["edit", "denoise", "RUN", "--image", "x.png", "--sigma", 1, "--out", "OUT.png", "--weights", "nan"],
        ),
        (2, "--sigma-rel must be >= 0.001 and < 0.28, not 0.28", ["ema", "RUN", "--sigma-rel", "0.28"]),
        (2, "--sigma-rel must be >= 0.001 and < 0.28, not nan", ["ema", "RUN", "--sigma-rel", "nan"]),
        (2, "--sigma-rel", ["ema", "RUN", "--sigma-rel", "long"]),
        (2, "Missing option '--sigma-rel'", ["ema", "RUN"]),
        (
            1,
            "too few averages to make one of the length 0.01: 3 in each of 30 checkpoints, which leave a misfit of .*"
            r"Keep more checkpoints \(train.keep_every\)",
            ["ema", "RUN", "--sigma-rel", "0.01"],
        ),
        (
            1,
            "too few averages to make one of the length 0.2: 3 in each of 1 checkpoints",
            ["ema", "RUN@4", "--sigma-rel", "0.2"],
        ),
        (
            1,
            "RUN_PLAIN has no averages that others can be made of; train with two",
            ["ema", "RUN_PLAIN", "--sigma-rel", "0.1"],
        ),
        (1, "no checkpoint of step 5", ["ema", "RUN@5", "--sigma-rel", "0.2"]),
        (1, "does not exist", ["ema", "nowhere", "--sigma-rel", "0.2"]),
        (2, "--out .*holds another run", ["ema", "RUN", "--sigma-rel", "0.2", "--out", "RUN"]),
        (
            2,
            "train.ema_sigma_rel must be a list of different numbers >= 0.001 and < 0.28, not",
            ["train", "--out", "OUT", *TINY, "--set=train.ema_sigma_rel=[0.3]"],
        ),
        (
            2,
            "train.ema_sigma_rel must be a list of different",
            ["train", "--out", "OUT", *TINY, "--set=train.ema_sigma_rel=[0.1,0.10]"],
        ),
        (2, "train.ema_sigma_rel must be", ["train", "--out", "OUT", *TINY, "--set=train.ema_sigma_rel=[0]"]),
        (2, "train.ema_sigma_rel", ["train", "--out", "OUT", *TINY, "--set=train.ema_sigma_rel=0.1"]),
        (
            2,
            r"train.ema_sigma_rel.*cannot be changed|ema_sigma_rel",
            ["train", "--out", "RUN", "--resume", "--set=train.ema_sigma_rel=[0.1]"],
        ),
    ],
)
def test_refusals(
    refused: Refused, run: Path, digits_run: Path, tmp_path: Path, code: int, says: str, command: list[object]
) -> None:
    def placed(word: object) -> object:
        text = (
            str(word).replace("RUN_PLAIN", str(digits_run))
            if "RUN_PLAIN" in str(word)
            else str(word).replace("RUN", str(run))
        )
        return text.replace("OUT", str(tmp_path / "out"))

    refused(code, says.replace("RUN_PLAIN", str(digits_run)), *map(placed, command))


@pytest.mark.parametrize(
    ("inside", "named", "made"),
    [
        (".", ".", "../run-ema-0.08"),
        (".", ".@120", "../run-ema-0.08"),
        ("checkpoints", "..", "../../run-ema-0.08"),
        ("checkpoints", "../../run", "../../run-ema-0.08"),
    ],
)
def test_the_average_lies_beside_its_run_however_that_is_named(
    ict: Ict, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, named: str, made: str
) -> None:
    shutil.copytree(run, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run" / inside)
    done = ict("ema", named, "--sigma-rel", 0.08)
    assert (done.code, done.err) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run-ema-0.08"}
    shown = Path(done.out.partition(":")[0])
    assert shown.resolve() == Path(made).resolve()
    assert shown.is_absolute() == (named != "../../run")


@pytest.mark.parametrize("part", ["ict_backends.runs.checkpoint.write_safetensors", "write_atomically"])
def test_a_failure_leaves_nothing(
    ict: Ict, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Neither its weights nor what it says about its data may be missing in what counts as a run."""

    def fail(path: Path, _: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    command = ("ema", run, "--sigma-rel", 0.08, "--out", tmp_path / "made")
    with monkeypatch.context() as patch:
        patch.setattr(part if "." in part else f"ict_backends.exchange.averages.{part}", fail)
        assert ict(*command).code == 1
    assert not list(tmp_path.iterdir())
    assert ict(*command).code == 0
    assert (tmp_path / "made" / "data.json").read_bytes() == (run / "data.json").read_bytes()


@pytest.mark.parametrize("how", ["cut", "without one"])
def test_a_damaged_checkpoint_is_named(refused: Refused, run: Path, tmp_path: Path, how: str) -> None:
    work = without(run, tmp_path / "run", [0.05, 0.1] if how == "cut" else [0.05, 0.12])
    if how == "cut":
        file = RunDir(work).checkpoint_folder(40) / "state.safetensors"
        file.write_bytes(file.read_bytes()[:-4])
        says = "step_00000040 is damaged"
    else:
        says = "checkpoint .*step_00000004 does not fit the network: it has no ema_0.12/"
    refused(1, says, "ema", work, "--sigma-rel", "0.1", "--out", tmp_path / "made")


def test_the_exponents_are_those_of_the_setting(run: Path) -> None:
    exponents = RunDir(run).load_config().train.average_exponents
    assert exponents == {str(length): power_exponent(length) for length in (0.05, 0.1, 0.07)}
