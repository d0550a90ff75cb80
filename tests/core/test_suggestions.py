"""What is offered for a name that does not exist: what is surely meant, and nothing else."""

from __future__ import annotations

import typing
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ict_core import Config, preset_names
from ict_core.config import FAMILIES
from ict_core.settings import suggest
from ict_core.suggestions import OTHER_NAMES, distance, nearest, plain, suggest_setting

HINTS = typing.get_type_hints(Config)
SETTINGS = {name: [f.name for f in fields(kind)] for name, kind in HINTS.items() if name != "network"}
SETTINGS["network"] = [f.name for kind in FAMILIES.values() for f in fields(kind)]
# Settings that the table names already, and that a version may not have yet.
EVERY = {f"{section}.{key}" for section, keys in SETTINGS.items() for key in keys}


def test_the_names_of_others_lead_to_settings() -> None:
    assert {meant.name for meant in OTHER_NAMES.values()} <= EVERY


def test_no_other_name_is_that_of_a_setting_that_means_something_else() -> None:
    ours = {plain(name.partition(".")[2]): name for name in EVERY}
    clashes = {word: meant.name for word, meant in OTHER_NAMES.items() if word in ours}
    # Of these, only `steps` is a setting of another section, and those who type it mean the length of the training.
    assert {word for word, name in clashes.items() if ours[word] != name} <= {"steps"}


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("lr", "train.learning_rate"),
        ("LR", "train.learning_rate"),
        ("batch", "train.batch_size"),
        ("bs", "train.batch_size"),
        ("BatchSize", "train.batch_size"),
        ("train_batch_size", "train.batch_size"),
        ("batch-gpu", "train.micro_batch"),
        ("ema", "train.ema_decay"),
        ("ema_rate", "train.ema_decay"),
        ("num_epochs", "train.total_steps"),
        ("max_train_steps", "train.total_steps"),
        ("iters", "train.total_steps"),
        ("gradient_accumulation_steps", "train.micro_batch"),
        ("beta1", "train.betas"),
        ("fp16", "train.precision"),
        ("mixed_precision", "train.precision"),
        ("save_every", "train.checkpoint_every"),
        ("checkpointing_steps", "train.checkpoint_every"),
        ("log_interval", "train.log_every"),
        ("eval_every", "eval.every"),
        ("num_res_blocks", "network.blocks"),
        ("ch_mult", "network.channel_mult"),
        ("attn_resolutions", "network.attention_resolutions"),
        ("gradient_checkpointing", "network.checkpoint"),
        ("xflip", "data.flip"),
        ("image_size", "data.size"),
        ("loss_norm", "loss.distance"),
        ("target_ema", "teacher.decay"),
        ("P_mean", "noise.p_mean"),
        ("sigma_min", "noise.sigma_min"),
        ("seed", "train.seed"),
        ("grad_clip", "train.clip_norm"),
        ("max_grad_norm", "train.clip_norm"),
        ("wd", "train.weight_decay"),
        ("warmup", "train.warmup_steps"),
        ("lr_scheduler", "train.rate_decay"),
        ("optim", "train.optimizer"),
        ("label_drop", "train.label_dropout"),
    ],
)
def test_what_people_type_leads_to_the_setting(word: str, name: str) -> None:
    meant = suggest(word)
    assert meant is not None
    assert meant.name == name


@pytest.mark.parametrize(
    "word", ["epochs", "kimg", "ema_halflife", "beta2", "num_heads", "gradient_accumulation_steps"]
)
def test_a_value_of_another_meaning_is_said_to_be_one(word: str) -> None:
    meant = suggest(word)
    assert meant is not None
    assert meant.note
    assert str(meant) == f"{meant.name} ({meant.note})"


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("train", "momentum"),
        ("train", "nesterov"),
        ("train", "decay"),  # of the rate, the weights, the average?
        ("train", "schedule"),
        ("train", "num_workers"),
        ("train", "learning_rate_decay"),
        ("train", "size"),
        ("noise", "sigma"),  # the least, the greatest, that of the data?
        ("noise", "schedule"),
        ("network", "embedding_dim"),
        ("network", "attention_type"),
        ("network", "channels_last"),
        ("network", "norm"),
        ("curriculum", "s2"),
        ("data", "caption"),
        ("loss", "reduction"),
        ("loss", "huber"),
        ("eval", "batch"),
        ("sample", "guidance"),
    ],
)
def test_nothing_is_offered_where_it_would_mislead(section: str, key: str) -> None:
    meant = suggest_setting(key, SETTINGS, section)
    assert meant is None or (key, meant.name) == ("batch", "train.batch_size")


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("lerning_rate", ["learning_rate", "seed"], "learning_rate"),
        ("trian", ["train", "data"], "train"),
        ("digist", preset_names(), "digits"),
        ("CIFAR-10", preset_names(), "cifar10"),
        ("cifar100", preset_names(), None),
        ("imagenet", preset_names(), None),
        ("s2", ["s0", "s1"], None),
        ("cat", ["car", "bat"], None),
        ("cover", ["cower", "hover"], None),  # two are as near
        ("", ["train"], None),
        ("train", [], None),
    ],
)
def test_the_nearest_name_is_a_slip_away_or_there_is_none(word: str, known: list[str], near: str | None) -> None:
    assert nearest(word, known) == near


@given(a=st.text("abc", max_size=6), b=st.text("abc", max_size=6))
def test_the_distance_of_names_is_one(a: str, b: str) -> None:
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))
    assert distance("x" + a, "x" + b) <= distance(a, b)
