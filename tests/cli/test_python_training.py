"""Training in Python: on arrays, with the result of `ict train`, and a run that every command takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Ict, contents
from tiny import as_options, smallest

from ict_backends import load, train
from ict_backends.data.dataset import load_data
from ict_backends.errors import CheckpointError, DataError, UsageError, UserError
from ict_backends.images import save_dataset
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import open_run
from ict_backends.runs.lines import read_lines
from ict_core import Config, ConfigError, load_preset
from ict_core.settings import build_config, replace

# The averaged weights are far from the initial ones after six steps.
TRAIN = {"total_steps": 6, "log_every": 2, "learning_rate": 1e-2, "ema_decay": 0.5, "checkpoint_every": 0}
TREE = smallest(train={**smallest()["train"], **TRAIN})
SETTINGS = build_config(TREE)
BACKENDS = ["torch", "jax"]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)


def weights_of(run: Path) -> dict[str, np.ndarray]:
    return load_checkpoint(open_run(run).checkpoint_of("ema")).ema


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = weights_of(one), weights_of(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_trains_as_the_command_does(ict: Ict, tmp_path: Path, images: np.ndarray, backend: str) -> None:
    records: list[dict[str, Any]] = []
    out, data, other = tmp_path / "deep" / "run", tmp_path / "x.npz", tmp_path / "other"
    model = train(SETTINGS, images, out=out, on_step=records.append, backend=backend, device="cpu")
    assert [record["step"] for record in records] == [2, 4, 6]
    assert records == read_lines(out / "metrics.jsonl")
    assert (model.step, model.backend, model.run.path) == (6, backend, out)
    assert repr(model).splitlines()[2] == "4x4 grey images of an array, no classes, noise levels 0.002 to 80"
    save_dataset(data, images[:, None], None, ())
    options = ("--data", data, "--backend", backend, "--device", "cpu", *as_options(TREE))
    assert ict("train", "--out", other, *options).code == 0
    assert_same_weights(out, other)
    np.testing.assert_array_equal(model.sample(4), load(other, backend=backend, device="cpu").sample(4))


def test_every_command_takes_the_run(ict: Ict, tmp_path: Path, images: np.ndarray) -> None:
    out = tmp_path / "run"
    train(SETTINGS, images, np.arange(12) % 3, out=out, device="cpu")
    assert ict("sample", out, "--out", tmp_path / "x.png", "--labels", 2, "--device", "cpu").code == 0
    assert ict("eval", out, "--metrics", "sw", "--num", 9, "--device", "cpu").code == 0
    assert ict("report", out, "--device", "cpu").code == 0
    done = ict("train", "--out", out, "--resume", "--steps", 8, "--device", "cpu")
    assert (done.code, done.err.count("Error")) == (0, 0), done
    assert load(out, device="cpu").step == 8


@pytest.mark.parametrize("shape", [(12, 4, 4), (12, 4, 4, 1), (12, 4, 4, 3), (12, 3, 4, 4)])
def test_images_of_every_layout_are_kept_with_the_run(tmp_path: Path, shape: tuple[int, ...]) -> None:
    given = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    channels_first = shape[1] == 3
    channels = 3 if 3 in shape else 1
    expected = given if channels_first else np.moveaxis(given.reshape(12, 4, 4, channels), 3, 1)
    model = train(SETTINGS, given, out=tmp_path / "run", device="cpu")
    assert model.config.data.shape == (channels, 4, 4)
    kept = load_data(model.config.data.source)
    np.testing.assert_array_equal(kept.images, expected)
    assert kept.labels is None


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (np.arange(12) % 3, np.arange(12) % 3, ()),
        ([0, 2] * 6, np.array([0, 2] * 6), ()),
        (["rock", "leaves", "rock"] * 4, np.array([1, 0, 1] * 4), ("leaves", "rock")),
    ],
)
def test_labels_make_the_model_conditional(
    tmp_path: Path, images: np.ndarray, labels: Any, numbers: np.ndarray, names: tuple[str, ...]
) -> None:
    model = train(SETTINGS, images, labels, out=tmp_path / "run", device="cpu")
    assert model.config.network.num_classes == numbers.max() + 1
    kept = load_data(model.config.data.source)
    assert kept.labels is not None
    np.testing.assert_array_equal(kept.labels, numbers)
    assert kept.classes == names
    noise, level = np.full((1, 1, 4, 4), 5, np.float32), np.array([5.0])
    clean = [model.low_level.consistency(noise, level, np.array([label])) for label in (0, numbers.max())]
    assert (clean[0] != clean[1]).any()  # six steps are too few for a difference in uint8


def test_a_source_is_resampled_as_the_settings_say(tmp_path: Path) -> None:
    save_dataset(tmp_path / "x.npz", np.zeros((12, 1, 6, 8), np.uint8), None, ())
    settings = replace(SETTINGS, data={"size": 4, "crop": "center"})
    model = train(settings, tmp_path / "x.npz", out=tmp_path / "run", device="cpu")
    data = model.config.data
    assert (data.shape, data.size, data.crop) == ((1, 4, 4), 4, "center")


def test_a_source_is_read_as_by_the_command(tmp_path: Path, images: np.ndarray) -> None:
    data = tmp_path / "x.npz"
    save_dataset(data, images[:, None], None, ())
    for number, source in enumerate((data, str(data))):
        model = train(SETTINGS, source, out=tmp_path / f"run{number}", device="cpu")
        assert model.config.data.source == str(data)
        assert not model.run.images_file.exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_starts_from_another_run_as_the_command_does(
    ict: Ict, tmp_path: Path, images: np.ndarray, backend: str
) -> None:
    """With the network and the noise levels of that run, whatever the settings say of them, but for dropout."""
    start = replace(SETTINGS, noise={"sigma_max": 40.0}, network={"dropout": 0.5})
    first = train(start, images, out=tmp_path / "first", device="cpu")
    settings = replace(SETTINGS, network={"channels": 16}, train={"seed": 3, "total_steps": 3})
    out, other, data = tmp_path / "run", tmp_path / "other", tmp_path / "x.npz"
    model = train(settings, 255 - images, out=out, init=first.run.path, backend=backend, device="cpu")
    assert (model.config.network, model.config.noise.sigma_max) == (SETTINGS.network, 40.0)
    save_dataset(data, 255 - images[:, None], None, ())
    tree = {**TREE, "train": {**TREE["train"], "seed": 3, "total_steps": 3}}
    del tree["network"], tree["data"]
    options = ("--data", data, "--preset=digits", "--init", tmp_path / "first", "--backend", backend, "--device", "cpu")
    done = ict("train", "--out", other, *options, *as_options(tree))
    assert done.code == 0, done
    assert_same_weights(out, other)


def test_settings_of_fine_tuning_say_nothing_of_the_network(tmp_path: Path, images: np.ndarray) -> None:
    """The preset as a configuration has a whole network, of the default settings; the run's dropout stays."""
    first = train(replace(SETTINGS, network={"dropout": 0.5}), images, out=tmp_path / "first", device="cpu")
    settings = replace(load_preset("finetune"), train={"total_steps": 1})
    model = train(settings, images, out=tmp_path / "run", init=first.run.path, device="cpu")
    assert model.config.network == first.config.network


def test_the_gap_rule_from_scratch_is_said_to_be_that(
    tmp_path: Path, images: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """As the command says it; and not of a run that tunes another one."""
    caplog.set_level("INFO")
    settings = replace(SETTINGS, curriculum={"schedule": "gap"}, train={"total_steps": 1})
    first = train(settings, images, out=tmp_path / "first", device="cpu")
    assert "this run starts from scratch" in caplog.text
    caplog.clear()
    train(settings, images, out=tmp_path / "tuned", init=first.run.path, device="cpu")
    assert "from scratch" not in caplog.text


def test_what_the_listener_raises_ends_the_training(ict: Ict, tmp_path: Path, images: np.ndarray) -> None:
    """And the run goes on from its last checkpoint."""

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            raise RuntimeError("enough")

    out, settings = tmp_path / "run", replace(SETTINGS, train={"checkpoint_every": 2})
    with pytest.raises(RuntimeError, match="^enough$"):
        train(settings, images, out=out, on_step=stop, device="cpu")
    assert load(out, device="cpu").step in (2, 4)
    assert ict("train", "--out", out, "--resume", "--device", "cpu").code == 0
    whole = train(settings, images, out=tmp_path / "whole", device="cpu")
    assert_same_weights(out, whole.run.path)


REFUSALS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ConfigError, 'unknown preset "digit"; did you mean digits?', {"settings": "digit"}),
    (DataError, "^images: images must be uint8 in 0..255, not float64$", {"images": np.zeros((4, 4, 4))}),
    (DataError, "^images: images must be .n, h, w.*, not .4, 4.$", {"images": np.zeros((4, 4), np.uint8)}),
    (DataError, "^images holds no images", {"images": np.zeros((0, 4, 4), np.uint8)}),
    (DataError, "^labels must be .12. integers >= 0 or names, one an image, not .3. int64$", {"labels": [1, 2, 3]}),
    (DataError, "^labels must be .12. integers .*, not .12. float64$", {"labels": np.zeros(12)}),
    (DataError, "^labels cannot be used: .* 12 of 12 labels are -1", {"labels": np.full(12, -1)}),
    (DataError, "has no labels, which network.num_classes = 3 needs", {"settings": {"network": {"num_classes": 3}}}),
    (
        DataError,
        "num_classes = 3 is not the number of classes of data .*, 5",
        {"settings": {"network": {"num_classes": 3}}, "labels": np.full(12, 4)},
    ),
    (DataError, "^data nowhere does not exist", {"images": "nowhere"}),
    (UsageError, "^labels are for arrays of images; digits has its own$", {"images": "digits", "labels": [1]}),
    (UsageError, "^unknown backend", {"backend": "numpy"}),
    (UsageError, "nowhere", {"device": "nowhere"}),
    (CheckpointError, "^run nowhere does not exist$", {"init": "nowhere"}),
    (
        ConfigError,
        "data.shape",
        {"images": np.zeros((4, 4, 5), np.uint8), "settings": replace(SETTINGS, network={"channel_mult": [1, 1]})},
    ),
]


@pytest.mark.parametrize(("kind", "says", "changed"), REFUSALS, ids=[says for _, says, _ in REFUSALS])
def test_what_is_not_allowed_is_refused_and_leaves_nothing(
    tmp_path: Path, images: np.ndarray, kind: type[Exception], says: str, changed: dict[str, Any]
) -> None:
    given: dict[str, Any] = {"settings": SETTINGS, "images": images, "device": "cpu"} | changed
    if isinstance(given["settings"], dict):
        given["settings"] = replace(SETTINGS, **given["settings"])
    with pytest.raises(kind, match=says):
        train(**given, out=tmp_path / "deep" / "run")
    assert contents(tmp_path) == {}


def test_another_run_is_not_overwritten(tmp_path: Path, images: np.ndarray) -> None:
    train(SETTINGS, images, out=tmp_path / "run", device="cpu")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="^out .*run holds another run; .* choose another folder$"):
        train(SETTINGS, images, out=tmp_path / "run", device="cpu")
    assert contents(tmp_path) == before


def test_several_processes_are_the_commands(
    tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="^train is for one process; .* `torchrun ... -m ict_cli train`$"):
        train(SETTINGS, images, out=tmp_path / "run", device="cpu")


def test_settings_come_back_from_a_configuration(tmp_path: Path, images: np.ndarray) -> None:
    model = train(SETTINGS, images, out=tmp_path / "run", device="cpu")
    kept: Config = model.config
    assert replace(kept, data={"source": SETTINGS.data.source}) == SETTINGS
    assert json.loads((tmp_path / "run" / "data.json").read_text())["count"] == 12
