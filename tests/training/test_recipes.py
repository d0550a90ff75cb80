"""What a run is trained with where the user does not say it: the preset, the classes, the weights of another run."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import smallest

from ict_backends.data.dataset import Dataset
from ict_backends.errors import CheckpointError, DataError, UsageError
from ict_backends.exchange.importing import weights_run
from ict_backends.networks.families import parameter_shapes
from ict_backends.runs.folder import RunDir, class_names, open_run, remember_data
from ict_backends.training.recipes import check_family, moved_attention, recipe_for, recipe_from
from ict_backends.training.resolve import averaged_weights, change_classes, resolve_new
from ict_backends.training.step_plan import share_at
from ict_core import ADMConfig, Config, ConfigError, load_preset
from ict_core.settings import Tree, build_config, preset_tree, replace

CLASSES = ("leaf", "rock", "water")


def images(height: int, count: int = 8, *, classes: tuple[str, ...] = (), width: int | None = None) -> Dataset:
    """Black images, of which each class has some."""
    labels = np.arange(count) % len(classes) if classes else None
    return Dataset(np.zeros((count, 3, height, width or height), np.uint8), labels, classes)


@pytest.mark.parametrize(
    ("height", "gpu", "preset", "attention"),
    [
        (8, False, "images16-cpu", (4,)),
        (16, True, "images16", (8,)),
        (28, False, "images32-cpu", (7,)),
        (32, True, "images32", (16,)),
        (48, True, "images32", (24,)),
        (64, False, "images64-cpu", (8,)),
        (96, True, "images64", (24,)),
    ],
)
def test_the_preset_fits_size_and_device(height: int, gpu: bool, preset: str, attention: tuple[int, ...]) -> None:
    """Attention stays at the level of the network where the preset has it."""
    recipe = recipe_for(images(height), "x", gpu=gpu)
    config = resolve_new(recipe.settings, {}, images(height))
    assert (recipe.preset, config.network.attention_resolutions) == (preset, attention)
    assert config.train == load_preset(preset).train
    assert f"8 images of 3x{height}x{height}" in recipe.reason


def test_few_images_on_a_gpu_get_the_papers_dropout() -> None:
    few, many = (recipe_for(images(16, count), "x", gpu=True) for count in (4_999, 5_000))
    assert [r.settings["network"]["dropout"] for r in (few, many)] == [0.3, load_preset("images16").network.dropout]
    assert "fewer than 5,000" in few.reason
    assert "fewer" not in many.reason


@pytest.mark.parametrize(
    ("height", "width", "says"),
    [
        (97, 97, "which no preset is for: --size"),
        (33, 64, "multiples of 8: --size 32x64 --crop center"),
        (97, 60, "no preset is for: --size 64x40 --crop"),
        (34, 34, "multiples of 4: --size 32"),
    ],
)
def test_other_sizes_are_refused(height: int, width: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        recipe_for(images(height, width=width), "x", gpu=False)


def test_conditional_takes_the_number_of_classes_of_the_data() -> None:
    base = smallest(data={"shape": [3, 4, 4]})
    data = images(4, classes=CLASSES)
    assert resolve_new(base, {}, data, conditional=True).network.num_classes == 3
    assert resolve_new(base, {}, data).network.num_classes == 0
    with pytest.raises(DataError, match="--conditional: data digits has no classes"):
        resolve_new(base, {}, images(4), conditional=True)
    with pytest.raises(DataError, match="--conditional: data digits has one class"):
        resolve_new(base, {}, images(4, classes=("leaf",)), conditional=True)
    with pytest.raises(UsageError, match=r"--conditional and network\.num_classes exclude each other"):
        resolve_new(base, {"network": {"num_classes": 3}}, data, conditional=True)
    with pytest.raises(DataError, match=r"network\.num_classes = 2 is not the number of classes of data digits, 3"):
        resolve_new(base, {"network": {"num_classes": 2}}, data)


def test_too_few_images_for_a_covariance_are_compared_by_kid(caplog: pytest.LogCaptureFixture) -> None:
    base = smallest(data={"shape": [3, 4, 4]}, eval={"every": 1})
    assert resolve_new(base, {}, images(4, 49)).eval.metric == "pixel-fd"
    assert resolve_new(base, {}, images(4, 48)).eval.metric == "kid"
    assert "eval.metric is kid and not pixel-fd, which needs 49 images at least; the data have 48" in caplog.text
    assert resolve_new(base, {"eval": {"metric": "sw"}}, images(4, 8)).eval.metric == "sw"
    assert resolve_new(base, {"eval": {"every": 0}}, images(4, 8)).eval.metric == "pixel-fd"


# --- from the weights of another run


def source(path: Path, *, classes: tuple[str, ...] = (), **sections: Tree) -> RunDir:
    """A run of weights that are all different, before its first step."""
    network = {"num_classes": len(classes), **sections.pop("network", {})}
    config = build_config(smallest(network=network, **{"data": {"shape": [3, 4, 4]}, **sections}))
    rng = np.random.default_rng(0)
    run = weights_run(
        {n: rng.normal(size=s).astype(np.float32) for n, s in parameter_shapes(config).items()}, config, path
    )
    remember_data(run, config, images(config.data.shape[1], classes=classes))
    return run


def tuned(run: RunDir, data: Dataset, *, conditional: bool = False, **asked: Tree) -> Config:
    return resolve_new(recipe_from(run, None).settings, asked, data, conditional=conditional)


def test_fine_tuning_keeps_the_function_and_the_last_number_of_levels(tmp_path: Path) -> None:
    noise = {"sigma_data": 0.3, "sigma_min": 0.01, "sigma_max": 20.0, "rho": 5.0}
    run = source(tmp_path / "run", noise=noise, sample={"second_sigma": 0.5}, curriculum={"s0": 3, "s1": 24})
    config, old = tuned(run, images(4)), run.load_config()
    assert (config.noise, config.sample, config.network) == (old.noise, old.sample, old.network)
    assert (config.curriculum.schedule, config.curriculum.s1) == ("fixed", 24)
    assert config.train == build_config(preset_tree("finetune")).train
    assert config.train.learning_rate == 1e-4
    assert "25 levels" in recipe_from(run, None).reason


def test_a_diffusion_model_is_tuned_by_the_gap_rule(tmp_path: Path) -> None:
    run = source(tmp_path / "run", curriculum={"schedule": "diffusion"}, noise={"p_mean": -1.2, "p_std": 1.2})
    config = tuned(run, images(4))
    assert (config.curriculum.schedule, config.curriculum.gap_q, config.curriculum.gap_stages) == ("gap", 32.0, 1)
    assert (config.noise.p_mean, config.noise.p_std) == (-1.1, 2.0)
    assert (
        "a diffusion model's: tuned with a gap of 1/32 unless settings say otherwise" in recipe_from(run, None).reason
    )


def test_a_tuned_model_is_tuned_on_with_its_last_gap(tmp_path: Path) -> None:
    run = source(tmp_path / "run", curriculum={"schedule": "gap", "gap_stages": 4, "gap_k": 5.0, "gap_limit": 0.99})
    curriculum = tuned(run, images(4)).curriculum
    assert (curriculum.schedule, curriculum.gap_q, curriculum.gap_stages) == ("gap", 16.0, 1)
    assert (curriculum.gap_k, curriculum.gap_limit) == (5.0, 0.99)
    assert "tuned with a gap of 1/16 in the end" in recipe_from(run, None).reason


def test_a_wide_gap_and_a_limit_are_carried_as_they_are(tmp_path: Path) -> None:
    """Shares that are no whole number's inverse, and one that the limit holds at 1."""
    for q, stages, limit, says in (
        (1.2, 1, 0.999, "a gap of 1/1.2 in the end"),
        (2.0, 8, 0.7, "a gap of 1/3.33333 in the end"),
        (2.0, 1, 1e-20, "a gap of 1/1 in the end"),
    ):
        curriculum = {"schedule": "gap", "gap_q": q, "gap_stages": stages, "gap_limit": limit}
        run = source(tmp_path / str(limit), curriculum=curriculum)
        config, old = tuned(run, images(4)), run.load_config()
        assert share_at(config, 0) == pytest.approx(share_at(old, old.train.total_steps - 1), rel=1e-15)
        assert says in recipe_from(run, None).reason


@pytest.mark.parametrize(
    ("step", "gap", "levels"),
    [(5, 2.0, 5), (10, 2.0, 5), (11, 4.0, 9), (20, 4.0, 9), (21, 8.0, 17), (40, 16.0, 33)],
)
def test_a_chosen_checkpoint_gives_the_stage_of_its_last_step(
    tmp_path: Path, step: int, gap: float, levels: int
) -> None:
    """Of four stages of ten steps: the checkpoint after a stage's end is still of that stage, not the newest one's."""
    kinds: dict[str, dict[str, int]] = {"gap": {"gap_stages": 4}, "doubling": {"s0": 4, "s1": 32}}
    for name, curriculum in kinds.items():
        run = source(tmp_path / name, curriculum={"schedule": name, **curriculum}, train={"total_steps": 40})
        first = run.checkpoint_folder(0)
        shutil.copytree(first, run.checkpoint_folder(40))
        shutil.copytree(first, run.checkpoint_folder(step), dirs_exist_ok=True)
        reached = tuned(open_run(f"{run.path}@{step}"), images(4)).curriculum
        assert (reached.gap_q == gap) if name == "gap" else (reached.s1 + 1 == levels)


def test_a_preset_that_is_asked_for_gives_the_rest(tmp_path: Path) -> None:
    run = source(tmp_path / "run", noise={"sigma_data": 0.3})
    config = resolve_new(recipe_from(run, "digits").settings, {}, images(4))
    assert (config.noise.sigma_data, config.network) == (0.3, run.load_config().network)
    assert (config.curriculum, config.train) == (load_preset("digits").curriculum, load_preset("digits").train)


def test_a_preset_that_is_asked_for_keeps_its_dropout(tmp_path: Path) -> None:
    """Weights and samples do not depend on it; without a preset, the run's stays."""
    run = source(tmp_path / "run", network={"dropout": 0.13, "checkpoint": True})
    old = run.load_config().network
    for preset, dropout, checkpoint in (
        ("cifar10-ect-hour", 0.2, False),
        ("imagenet64", 0.2, load_preset("imagenet64").network.checkpoint),
        ("finetune", 0.13, True),
        (None, 0.13, True),
    ):
        network = resolve_new(recipe_from(run, preset).settings, {}, images(4)).network
        assert network == dataclasses.replace(old, dropout=dropout, checkpoint=checkpoint)


def test_where_dropout_is_comes_from_a_preset_of_the_same_family(tmp_path: Path) -> None:
    adm = {"family": "adm", "channels": 32, "head_channels": 32, "dropout": 0.3, "dropout_resolution": 2}
    run = source(tmp_path / "run", network=adm)
    for preset, dropout, resolution in (("imagenet64", 0.2, 16), ("cifar10-tiny", 0.0, 2), (None, 0.3, 2)):
        network = resolve_new(recipe_from(run, preset).settings, {}, images(4)).network
        assert isinstance(network, ADMConfig)
        assert (network.channels, network.dropout, network.dropout_resolution) == (32, dropout, resolution)


def test_another_family_than_that_of_the_weights_is_refused(tmp_path: Path) -> None:
    run = source(tmp_path / "run", network={"family": "adm", "channels": 32, "head_channels": 32})
    for asked in ({}, {"network": {"dropout": 0.1}}, {"network": {"family": "adm"}}):
        check_family(run, asked)
    with pytest.raises(ConfigError, match=r'^network\.family must be "adm", the architecture of --init .*, not "ncsn'):
        check_family(run, {"network": {"family": "ncsnpp"}})


def test_the_names_of_the_classes_are_kept(tmp_path: Path) -> None:
    run = source(tmp_path / "run", classes=CLASSES)
    config = run.load_config()
    assert class_names(run, config) == list(CLASSES)
    assert class_names(run, replace(config, network={"num_classes": 0})) is None
    for damaged in (
        '{"class_names": ["leaf"]}',
        '{"class_names": [1, 2, 3]}',
        '{"class_names": "abc"}',
        "[]",
        "{}",
        "{",
    ):
        run.data_file.write_text(damaged)
        assert class_names(run, config) is None


def test_the_same_classes_keep_their_weights(tmp_path: Path) -> None:
    run, data = source(tmp_path / "run", classes=CLASSES), images(4, classes=CLASSES)
    weights, said = averaged_weights(run, tuned(run, data), data)
    assert said == ""
    first = np.random.default_rng(0).normal(size=next(iter(weights.values())).shape).astype(np.float32)
    np.testing.assert_array_equal(next(iter(weights.values())), first)


@pytest.mark.parametrize("new", [("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d")])
def test_other_classes_begin_as_the_mean_of_the_old_ones(tmp_path: Path, new: tuple[str, ...]) -> None:
    run, data = source(tmp_path / "run", classes=CLASSES), images(4, classes=new)
    weights, said = averaged_weights(run, tuned(run, data, conditional=True), data)
    assert said.startswith(f"each of the {len(new)} classes begins as the mean of the 3 old ones; a whole curriculum")
    old, _ = averaged_weights(run, run.load_config(), images(4, classes=CLASSES))
    table = weights["embedding.labels.weight"]
    np.testing.assert_allclose(table, np.tile(old["embedding.labels.weight"].mean(0), (len(new), 1)), rtol=1e-6)
    assert all((weights[name] == old[name]).all() for name in old if name != "embedding.labels.weight")


def test_classes_are_added_to_a_model_without_them_and_taken_from_one(tmp_path: Path) -> None:
    """Added ones leave the function as it is; without them, the mean of their rows stays."""
    run, data = source(tmp_path / "run"), images(4, classes=CLASSES)
    weights, said = averaged_weights(run, tuned(run, data, conditional=True), data)
    assert said.startswith("each of the 3 classes begins as the model that there is; a whole curriculum")
    config = resolve_new(recipe_from(run, "digits").settings, {}, data, conditional=True)
    assert averaged_weights(run, config, data)[1] == "each of the 3 classes begins as the model that there is"
    assert not weights["embedding.labels.weight"].any()
    assert list(weights) == list(parameter_shapes(tuned(run, data, conditional=True)))
    weights, said = change_classes(weights | {"embedding.labels.weight": np.full((3, 32), [[1.0], [2.0], [6.0]])}, 0)
    old, _ = averaged_weights(run, run.load_config(), images(4))
    assert said == "its classes are merged into one, the mean of their rows"
    np.testing.assert_allclose(weights["embedding.dense_1.bias"], old["embedding.dense_1.bias"] + 3, rtol=1e-6)


def test_classes_that_enter_early_are_replaced_by_what_they_add() -> None:
    """Old ones by their mean, none by nothing; without classes, what they add goes where it went."""
    rng = np.random.default_rng(0)
    shapes = {"dense_0.weight": (6, 4), "dense_0.bias": (6,), "dense_1.bias": (6,), "labels.weight": (4, 3)}
    shapes["labels.bias"] = (4,)
    old = {f"embedding.{name}": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def added(weights: dict[str, np.ndarray]) -> np.ndarray:
        table, bias = weights["embedding.labels.weight"], weights["embedding.labels.bias"]
        return table.T * math.sqrt(table.shape[1]) + bias

    mean = added(old).mean(axis=0)
    for count in (2, 5):
        new, said = change_classes(old, count, early=True)
        assert said == f"each of the {count} classes begins as the mean of the 3 old ones"
        np.testing.assert_allclose(added(new), np.tile(mean, (count, 1)), rtol=1e-5)
    none, said = change_classes(old, 0, early=True)
    assert said == "its classes are merged into one, the mean of their rows"
    assert none.keys() == old.keys() - {"embedding.labels.weight", "embedding.labels.bias"}
    went = none["embedding.dense_0.bias"] - old["embedding.dense_0.bias"]
    np.testing.assert_allclose(went, old["embedding.dense_0.weight"] @ mean, rtol=1e-5, atol=1e-6)
    new, said = change_classes(none, 2, early=True)
    assert said == "each of the 2 classes begins as the model that there is"
    assert not added(new).any()


def test_another_size_is_refused_in_a_sentence_about_attention(tmp_path: Path) -> None:
    network = {"channel_mult": [1, 1], "attention_resolutions": [4]}
    config = build_config(smallest(network=network, data={"shape": [3, 4, 4]}))
    run = weights_run(
        {n: np.zeros(s, np.float32) for n, s in parameter_shapes(config).items()}, config, tmp_path / "run"
    )
    data = images(8)
    says = "it is of images of 4x4: at 8x8, attention at 4 would move from level 1 to 2 of the network; --size 4"
    with pytest.raises(CheckpointError, match=f"--init .* does not fit: {says}"):
        averaged_weights(run, tuned(run, data), data)
    everywhere = replace(config, network={"attention_resolutions": ()})
    assert moved_attention(everywhere, replace(everywhere, data={"shape": (3, 8, 8)})) == ""
