"""Settings: ranges, names, the order of sources, and the presets with the numbers of the paper."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ict_core import (
    ADMConfig,
    Config,
    ConfigError,
    CurriculumConfig,
    DataConfig,
    LossConfig,
    NCSNppConfig,
    NoiseConfig,
    SampleConfig,
    TeacherConfig,
    TrainConfig,
    load_config,
    load_preset,
    preset_names,
)
from ict_core.config import rules_of
from ict_core.settings import build_config, merge, parse_assignment, preset_tree, read_toml, replace

SECTIONS = {f.name: f for f in dataclasses.fields(Config)}


def test_the_defaults_are_the_papers_cifar10() -> None:
    """Method section 3; each number that the recipe fixes."""
    config = build_config({"data": {"shape": [3, 32, 32]}})
    network, noise, train = config.network, config.noise, config.train
    assert (network.channels, network.channel_mult, network.blocks) == (128, (2, 2, 2), 4)
    assert (network.attention_resolutions, network.dropout) == ((16,), 0.3)
    assert (network.embedding, network.embedding_scale, network.fir_kernel) == ("fourier", 0.02, (1, 3, 3, 1))
    assert network.input_pyramid
    assert network.skip_rescale
    assert (noise.sigma_min, noise.sigma_max, noise.rho, noise.sigma_data) == (0.002, 80, 7, 0.5)
    assert (noise.p_mean, noise.p_std) == (-1.1, 2.0)
    assert (config.curriculum.s0, config.curriculum.s1, config.loss.huber_factor) == (10, 1280, 0.00054)
    assert (train.total_steps, train.batch_size, train.learning_rate) == (400_000, 1024, 1e-4)
    assert (train.betas, train.ema_decay, config.sample.second_sigma) == ((0.9, 0.999), 0.99993, 0.821)


_OTHER_METHODS = {
    "digits-cm",
    "finetune",
    *(n for n in preset_names() if n.endswith(("-ect", "-ect-hour", "-diffusion"))),
}


@pytest.mark.parametrize("name", sorted({*preset_names()} - _OTHER_METHODS))
def test_presets_keep_what_the_method_fixes(name: str) -> None:
    """Sizes, rates and stages are tuned for a data set; the law, the levels, the distance and the teacher are not."""
    config = load_preset(name)
    assert config.noise == NoiseConfig()
    assert config.loss == LossConfig()
    assert config.teacher == TeacherConfig()
    assert config.curriculum.schedule == "doubling"
    assert config.train.betas == (0.9, 0.999)


@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_diffusion_is_that_of_edm_and_tuning_that_of_ect(data: str) -> None:
    diffusion, tuning = load_preset(f"{data}-diffusion"), load_preset(f"{data}-ect")
    assert (diffusion.curriculum.has_teacher, tuning.curriculum.has_teacher) == (False, True)
    assert (diffusion.noise.p_mean, diffusion.noise.p_std) == (-1.2, 1.2)
    assert (diffusion.loss.distance, diffusion.loss.weighting) == ("l2", "edm")
    assert (tuning.noise.p_mean, tuning.noise.p_std, tuning.loss.weighting) == (-1.1, 2.0, "inverse_gap")
    assert (tuning.curriculum.schedule, tuning.curriculum.gap_k, tuning.curriculum.gap_b) == ("gap", 8.0, 1.0)
    assert replace(diffusion, network={"dropout": 0.0}).network == replace(tuning, network={"dropout": 0.0}).network


def test_the_two_parts_on_digits_take_the_operations_of_the_plain_recipe() -> None:
    """In forward passes: 3 of a diffusion step, 4 of another one."""
    diffusion, tuning, plain = (load_preset(f"digits{part}").train for part in ("-diffusion", "-ect", ""))
    assert 3 * diffusion.total_steps + 4 * tuning.total_steps == 4 * plain.total_steps


def test_the_defaults_are_the_recipe_and_not_what_it_is_compared_with() -> None:
    config = Config()
    assert (config.loss.distance, config.loss.weighting, config.noise.law) == (
        "pseudo_huber",
        "inverse_gap",
        "lognormal",
    )
    assert (config.curriculum.schedule, config.teacher.decay, config.teacher.averaged) == ("doubling", 0, False)
    assert config.teacher.share_dropout


def test_original_consistency_training_on_the_digits() -> None:
    """Song et al. 2023; all that is no part of the method is as in the digits."""
    config, digits = load_preset("digits-cm"), load_preset("digits")
    assert (config.loss.distance, config.loss.weighting, config.noise.law) == ("l2", "one", "uniform")
    assert (config.curriculum.schedule, config.curriculum.s0, config.curriculum.s1) == ("cm", 2, 150)
    assert (config.teacher.decay, config.teacher.schedule) == (0.9, "adaptive")
    assert config.network.embedding_scale == 16
    assert (config.data, config.train, config.sample, config.eval) == (
        digits.data,
        digits.train,
        digits.sample,
        digits.eval,
    )
    assert replace(config, network={"embedding_scale": 0.02}).network == digits.network


def test_the_imagenet_preset_is_the_papers() -> None:
    """Method section 3, the ImageNet column; the deep one has twice the blocks."""
    config, deep = load_preset("imagenet64"), load_preset("imagenet64-deep")
    network, train = config.network, config.train
    assert isinstance(network, ADMConfig)
    assert (network.channels, network.channel_mult, network.blocks) == (192, (1, 2, 3, 4), 3)
    assert (network.attention_resolutions, network.head_channels) == ((32, 16, 8), 64)
    assert (network.dropout, network.dropout_resolution, network.num_classes) == (0.2, 16, 1000)
    assert (network.scale_shift, network.resblock_updown, network.embedding_scale) == (False, True, 1000)
    assert (train.total_steps, train.batch_size, train.learning_rate) == (800_000, 4096, 1e-4)
    assert (train.ema_decay, config.sample.second_sigma, config.data.flip) == (0.99997, 1.526, True)
    assert deep == replace(config, network={"blocks": 6})
    changed = {"attention_resolutions": (16, 8), "normalize_qkv": True}
    assert load_preset("imagenet64-stable") == replace(config, network=changed)


def test_the_cifar10_presets_are_the_defaults() -> None:
    config = load_preset("cifar10")
    assert config.network == NCSNppConfig()
    assert (config.curriculum, config.sample) == (CurriculumConfig(), SampleConfig())
    differing = {"log_every", "sample_every", "checkpoint_every"}
    assert replace(config, train={k: getattr(TrainConfig(), k) for k in differing}).train == TrainConfig()
    assert load_preset("cifar10-deep") == replace(config, network={"blocks": 8})


@pytest.mark.parametrize("family", ["unet", 3, "ADM"])
def test_another_family_of_networks_is_refused(family: object) -> None:
    with pytest.raises(ConfigError, match='network.family must be "ncsnpp" or "adm", not'):
        build_config({"network": {"family": family}})


def test_each_family_has_its_own_keys() -> None:
    assert build_config({"data": {"shape": [3, 8, 8]}, "network": {"family": "adm", "head_channels": 32}})
    with pytest.raises(ConfigError, match="unknown key network.head_channels"):
        build_config({"network": {"head_channels": 32}})
    with pytest.raises(ConfigError, match="unknown key network.fir_kernel"):
        build_config({"network": {"family": "adm", "fir_kernel": [1, 1]}})


def test_digits_is_a_preset() -> None:
    assert {"digits", "digits-long"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_a_printed_configuration_reads_back_equal(name: str, tmp_path: Path) -> None:
    config = load_preset(name)
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    assert load_config(file) == config


@given(
    source=st.text(min_size=1).filter(lambda s: "\x7f" not in s and not any("\ud800" <= c <= "\udfff" for c in s)),
    rate=st.floats(1e-12, 1e6),
    mult=st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_any_value_reads_back_equal(source: str, rate: float, mult: list[int]) -> None:
    tree = {
        "data": {"source": source, "shape": [1, 16, 16]},
        "train": {"learning_rate": rate},
        "network": {"channel_mult": mult},
    }
    config = build_config(tree)
    assert build_config(tomllib.loads(config.to_toml())) == config


def test_flat_names_every_value() -> None:
    flat = Config().flat()
    assert flat["train.learning_rate"] == 1e-4
    assert len(flat) == sum(len(dataclasses.fields(getattr(Config(), name))) for name in SECTIONS)


def test_later_sources_replace_earlier_ones_key_by_key() -> None:
    tree = merge([{"train": {"seed": 1, "batch_size": 2}}, {"train": {"seed": 3}}, {"data": {"flip": True}}])
    assert tree == {"train": {"seed": 3, "batch_size": 2}, "data": {"flip": True}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.seed=3", 3),
        ("train.seed = 3", 3),
        ("train.seed=1e-3", 1e-3),
        ("train.seed=[1, 2]", [1, 2]),
        ("train.seed=true", True),
        ("train.seed=digits", "digits"),
        ('train.seed="a b"', "a b"),
        ("train.seed=/data/a=b.npz", "/data/a=b.npz"),
        ("train.seed=", ""),
    ],
)
def test_assignments_are_toml_or_bare_strings(text: str, value: object) -> None:
    assert parse_assignment(text) == {"train": {"seed": value}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr=1e-4", r"did you mean train.learning_rate=1e-4\?$"),
        ("seed=3", r"did you mean train.seed=3\?$"),
        ("epochs=3", "such as train.batch_size=64$"),  # the value would mean something else
        ("q=3", "such as train.batch_size=64$"),
    ],
)
def test_a_setting_without_its_section_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_assignment(text)


@pytest.mark.parametrize("text", ["train.seed", "seed=3", "=3", "train.=3", ".seed=3"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be SECTION.KEY=VALUE"):
        parse_assignment(text)


def test_integers_become_numbers() -> None:
    config = build_config({"train": {"learning_rate": 1}, "noise": {"rho": 5}})
    assert (config.train.learning_rate, type(config.train.learning_rate)) == (1.0, float)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.seed", 1.0),
        ("train.seed", True),
        ("train.seed", "1"),
        ("train.learning_rate", True),
        ("train.learning_rate", "fast"),
        ("data.flip", 0),
        ("data.source", 3),
        ("data.shape", 8),
        ("data.shape", [1, 8.0, 8]),
    ],
)
def test_nothing_is_converted_where_something_would_be_lost(name: str, value: object) -> None:
    section, _, key = name.partition(".")
    with pytest.raises(ConfigError, match=f"^{name} must be a"):
        build_config({section: {key: value}})


@pytest.mark.parametrize(
    ("section", "bad"),
    [
        (DataConfig, {"source": ""}),
        (DataConfig, {"shape": (8, 8)}),
        (DataConfig, {"shape": (0, 8, 8)}),
        (DataConfig, {"size": -1}),
        (DataConfig, {"size": 1}),
        (DataConfig, {"crop": "left"}),
        (NCSNppConfig, {"family": "unet"}),
        (NCSNppConfig, {"channels": 0}),
        (NCSNppConfig, {"channels": 6}),
        (NCSNppConfig, {"channel_mult": ()}),
        (NCSNppConfig, {"channel_mult": (1, 0)}),
        (NCSNppConfig, {"blocks": 0}),
        (NCSNppConfig, {"attention_resolutions": (0,)}),
        (NCSNppConfig, {"dropout": -0.1}),
        (NCSNppConfig, {"dropout": 1.0}),
        (NCSNppConfig, {"embedding": "learned"}),
        (NCSNppConfig, {"embedding_scale": 0.0}),
        (NCSNppConfig, {"fir_kernel": (1.0, 2.0, 1.0)}),
        (NCSNppConfig, {"fir_kernel": (1.0, -1.0)}),
        (NCSNppConfig, {"num_classes": -1}),
        (NCSNppConfig, {"labels_at": "end"}),
        (ADMConfig, {"family": "ncsnpp"}),
        (ADMConfig, {"channels": 1}),
        (ADMConfig, {"channel_mult": ()}),
        (ADMConfig, {"channel_mult": (0,)}),
        (ADMConfig, {"min_group_channels": 3}),
        (ADMConfig, {"blocks": 0}),
        (ADMConfig, {"attention_resolutions": (0,)}),
        (ADMConfig, {"head_channels": 0}),
        (ADMConfig, {"dropout": 1.0}),
        (ADMConfig, {"dropout_resolution": -1}),
        (ADMConfig, {"embedding_scale": 0.0}),
        (ADMConfig, {"num_classes": -1}),
        (NoiseConfig, {"sigma_min": 0.0}),
        (NoiseConfig, {"sigma_max": 0.002}),
        (NoiseConfig, {"rho": 0.0}),
        (NoiseConfig, {"sigma_data": -0.5}),
        (NoiseConfig, {"p_std": 0.0}),
        (CurriculumConfig, {"s0": 0}),
        (CurriculumConfig, {"s1": 9}),
        (CurriculumConfig, {"schedule": "doubled"}),
        (LossConfig, {"huber_factor": 0.0}),
        (LossConfig, {"distance": "huber"}),
        (LossConfig, {"weighting": "gap"}),
        (NoiseConfig, {"law": "normal"}),
        (TeacherConfig, {"decay": 1.0}),
        (TeacherConfig, {"decay": -0.1}),
        (TeacherConfig, {"schedule": "cm"}),
        (TrainConfig, {"seed": -1}),
        (TrainConfig, {"seed": 2**63}),
        (TrainConfig, {"total_steps": 0}),
        (TrainConfig, {"batch_size": 0}),
        (TrainConfig, {"learning_rate": 0.0}),
        (TrainConfig, {"betas": (0.9,)}),
        (TrainConfig, {"betas": (0.9, 1.0)}),
        (TrainConfig, {"ema_decay": 1.0}),
        (TrainConfig, {"log_every": 0}),
        (TrainConfig, {"sample_every": -1}),
        (TrainConfig, {"checkpoint_every": -1}),
        (TrainConfig, {"keep_checkpoints": -1}),
        (SampleConfig, {"second_sigma": 0.0}),
    ],
)
def test_values_out_of_range_are_named(section: type, bad: dict[str, object]) -> None:
    (key,) = bad
    with pytest.raises(ConfigError, match=f"^[a-z]+.{key} must be .*, not ") as error:
        section(**bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("fewest", "channels", "unit"), [(1, 72, 32), (4, 74, 4)])
def test_widths_of_adm_are_multiples_of_what_its_norms_need(fewest: int, channels: int, unit: int) -> None:
    with pytest.raises(ConfigError, match=f"network.channels = {channels} multiples of {unit}"):
        ADMConfig(channels=channels, channel_mult=(1,), min_group_channels=fewest)
    assert ADMConfig(channels=72, channel_mult=(1,), min_group_channels=4).channels == 72


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"shape": (1, 6, 8)}}, r"data.shape must be of a height that divides by 4, .* not \[1, 6, 8\]"),
        ({"data": {"shape": (1, 8, 6)}}, r"data.shape must be of a width that divides by 4, .* not \[1, 8, 6\]"),
        ({"data": {"shape": (1, 6, 6)}}, "divides by 4, since network.channel_mult has 3 levels"),
        ({"sample": {"second_sigma": 80.0}}, "sample.second_sigma must be in .0.002, 80.,? ?"),
        ({"noise": {"sigma_min": 1.0}}, "sample.second_sigma must be in"),
    ],
)
def test_sections_must_agree(changes: dict[str, dict[str, object]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(Config(), **changes)


def test_an_adaptive_teacher_needs_a_decay() -> None:
    with pytest.raises(ConfigError, match='^teacher.decay must be in .0, 1. with teacher.schedule = "adaptive", not 0'):
        TeacherConfig(schedule="adaptive")
    assert TeacherConfig(schedule="adaptive", decay=0.9).averaged


@pytest.mark.parametrize("schedule", ["gap", "diffusion"])
def test_the_law_of_intervals_is_refused_where_there_are_none(schedule: str) -> None:
    says = f'noise.law must be "lognormal" with curriculum.schedule = "{schedule}", which has no grid'
    with pytest.raises(ConfigError, match=says):
        build_config({"noise": {"law": "uniform"}, "curriculum": {"schedule": schedule}})
    build_config({"noise": {"law": "uniform"}, "curriculum": {"schedule": "cm"}})
    build_config({"curriculum": {"schedule": schedule}})


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"trian": {}}, r"unknown section \[trian\]; did you mean train"),
        ({"train": {"lerning_rate": 1.0}}, "unknown key train.lerning_rate; did you mean train.learning_rate"),
        ({"train": {"sigma_min": 1.0}}, "unknown key train.sigma_min; did you mean noise.sigma_min"),
        ({"train": {"lr": 1.0}}, "unknown key train.lr; did you mean train.learning_rate"),
        ({"train": {"batch": 1}}, "unknown key train.batch; did you mean train.batch_size"),
        ({"train": {"classes": 1}}, "unknown key train.classes; did you mean network.num_classes"),
        (
            {"train": {"grad_clip": 1.0}},
            r"unknown key train.grad_clip; did you mean train.clip_norm\?$",
        ),
        (
            {"loss": {"qqqqqqqqqqqqqqqqqqqqqq": 1.0}},
            r"unknown key loss.q+; \[loss\] has distance, huber_factor, weighting$",
        ),
        ({"network": {"head_channels": 1}}, 'unknown key network.head_channels; it is of network.family = "adm"$'),
        ({"optimizer": {"lr": 1.0}}, r"unknown section \[optimizer\]; did you mean train.learning_rate\?; there are"),
        ({"optimizer": {"momentum": 1.0}}, r"unknown section \[optimizer\]; did you mean train\?; there are"),
        ({"qqq": {"q": 1.0}}, r"unknown section \[qqq\]; there are data, .*, eval$"),
    ],
)
def test_unknown_names_suggest_the_nearest(tree: dict[str, dict[str, Any]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_config(tree)


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match='unknown preset "digist"; did you mean digits'):
        preset_tree("digist")


@pytest.mark.parametrize("content", [b"[train", b"\xff\xfe", b"seed = 1"])
def test_files_that_are_no_settings_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.toml"):
        read_toml(file)


def test_settings_cannot_be_changed_or_given_by_position() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.seed = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        TrainConfig(3)  # type: ignore[misc]


def test_settings_of_earlier_versions_are_read_under_their_new_names(tmp_path: Path) -> None:
    new = build_config({"noise": {"p_mean": -0.4, "p_std": 1.2}})
    assert build_config({"noise": {"noise_mean": -0.4, "noise_std": 1.2}}) == new
    assert build_config(merge([{"noise": {"p_mean": 3.0, "p_std": 1.2}}, {"noise": {"noise_mean": -0.4}}])) == new
    assert parse_assignment("noise.noise_std=1.2") == {"noise": {"p_std": 1.2}}
    file = tmp_path / "config.toml"
    file.write_text(new.to_toml().replace("p_mean", "noise_mean").replace("p_std", "noise_std"), encoding="utf-8")
    assert load_config(file) == new
    assert "noise_mean" not in new.to_toml()


def test_a_setting_under_both_of_its_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="^noise.noise_mean is the old name of noise.p_mean; only one of them may be"):
        build_config({"noise": {"p_mean": -0.4, "noise_mean": -0.4}})


def test_every_setting_that_is_one_of_several_words_lists_them() -> None:
    for section in typing.get_type_hints(Config).values():
        for kind in typing.get_args(section) or (section,):
            for name, rule in rules_of(kind).items():
                assert rule.holds(getattr(kind(), name))
                assert all(map(rule.holds, rule.choices))
                assert not rule.choices or not rule.holds("another word")


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("network", "blocks", 1001, "network.blocks must be >= 1 and <= 1000, not 1001"),
        ("network", "channel_mult", [1] * 15, "network.channel_mult must be a list of 14 integers at most"),
        ("network", "num_classes", 10**6 + 1, "network.num_classes must be >= 0 and <= 1000000 .0: unconditional."),
        ("data", "shape", [3, 16385, 16385], "each >= 1 and <= 16384, not .3, 16385, 16385."),
        (
            "data",
            "size",
            4097,
            "data.size must be >= 2 and <= 4096 .or 0: as they are., or .height, width., .*, not 4097",
        ),
        ("curriculum", "s1", 100_001, "curriculum.s1 must be >= curriculum.s0 = 10 and <= 100000, not 100001"),
        ("train", "batch_size", 10**6 + 1, "train.batch_size must be >= 1 and <= 1000000"),
        ("train", "total_steps", 2**31, "train.total_steps must be >= 1 and <= 2147483647, not 2147483648"),
        ("train", "total_steps", 2**63, "train.total_steps must be an integer of 64 bits, not 9223372036854775808"),
        ("train", "learning_rate", 10**400, "train.learning_rate must be an integer of 64 bits"),
        ("train", "log_every", 16**9999, "train.log_every must be an integer of 64 bits, not a int that is too long"),
    ],
    ids=range(11),  # pytest cannot write out the last value, either
)
def test_what_would_fill_a_machine_is_out_of_range(section: str, key: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_config({section: {key: value}})


@pytest.mark.parametrize(
    "text", ["[a]\nb = " + "[" * 9999, "[a]\nb = " + "9" * 9999, "\0", "[a]\nb = 1979-99-99", '[a]\n"b" = 1\nb = 2']
)
def test_every_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ConfigError, match="is not a TOML file"):
        read_toml(tmp_path / "x.toml")
    assert parse_assignment(f"a.b={'[' * 9999}") == {"a": {"b": "[" * 9999}}


def test_an_error_is_one_line_whatever_the_names() -> None:
    with pytest.raises(ConfigError, match="^unknown key train.a b;"):
        build_config({"train": {"a\nb": 1}})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimizer": "adamw"}, 'train.weight_decay must be > 0 with train.optimizer = "adamw", not 0.0'),
        ({"optimizer": "adam", "weight_decay": 0.1}, 'train.weight_decay must be 0 ("adamw" has it) with'),
        ({"rate_decay_from": 5}, 'train.rate_decay_from must be 0 with train.rate_decay = "none", not 5'),
        ({"rate_decay": "cosine", "warmup_steps": 9, "rate_decay_from": 5}, "train.rate_decay_from must be >= "),
        ({"rate_decay": "inverse_sqrt"}, 'train.rate_decay_from must be > 0 with train.rate_decay = "inverse_sqrt"'),
        ({"clip_norm": -1.0}, "train.clip_norm must be >= 0"),
    ],
)
def test_settings_of_the_optimiser_that_change_nothing_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        TrainConfig(**changes)
    assert TrainConfig(weight_decay=0.1).optimizer == "radam"
