"""The settings of a run: frozen dataclasses, their ranges, and the presets.

A configuration is made of sections of plain values, so that every value has one dotted name
(`train.learning_rate`), in TOML files, on the command line and in the printed result alike.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ict_core.curriculum import SCHEDULES
from ict_core.loss import DISTANCES, WEIGHTINGS
from ict_core.noise_law import LAWS

PRESETS = Path(__file__).parent / "presets"


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type or out of range; the message is one line."""


def _require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    known = list(choices)
    allowed = f"{', '.join(map(_literal, known[:-1]))} or {_literal(known[-1])}"
    _require(value in known, name, value, allowed)


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{name} must be {allowed}, not {_literal(value)}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from and what they are.

    Attributes:
        source: "digits" (embedded), "hf:NAME" of a Hugging Face dataset, or a path.
        shape: [channels, height, width] of an image.
        size: height and width that images are resampled to when they are read; 0 for those that they have.
        crop: "center" takes the middle square of each image first, "none" nothing.
        flip: mirror images left to right at random.
        hold: where the images are while training: on the "device", on the "host", of which each step's are copied
            while the one before is computed, or "auto": on the device if they take a third of its free memory at most.
    """

    source: str = "digits"
    shape: tuple[int, ...] = (1, 8, 8)
    size: int = 0
    crop: str = "none"
    flip: bool = False
    hold: str = "auto"

    def __post_init__(self) -> None:
        _require(self.source != "", "data.source", self.source, '"digits" or a path')
        ok = len(self.shape) == 3 and all(s >= 1 for s in self.shape)
        _require(ok, "data.shape", self.shape, "[channels, height, width], each >= 1")
        _require(self.size == 0 or self.size >= 2, "data.size", self.size, ">= 2 (or 0: as they are)")
        _require(self.crop in ("none", "center"), "data.crop", self.crop, '"none" or "center"')
        ok = self.hold in ("auto", "device", "host")
        _require(ok, "data.hold", self.hold, '"auto", "device" or "host"')

    @property
    def dim(self) -> int:
        """D, the number of elements of an image."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class NCSNppConfig:
    """The NCSN++ network; the defaults are those of the authors' CIFAR-10 model.

    Attributes:
        family: "ncsnpp".
        channels: nf, the width that `channel_mult` multiplies; a multiple of 4.
        channel_mult: width of each level in units of `channels`; each level halves the image.
        blocks: residual blocks a level on the way down (one more on the way up).
        attention_resolutions: image heights at which self-attention follows.
        dropout: rate in [0, 1), between the two convolutions of a block.
        embedding: "fourier" or "positional" features of c_noise = log(sigma) / 4.
        embedding_scale: fourier: standard deviation of the frequencies; positional: the factor on
            c_noise (1000 gives the authors' 250 log sigma).
        fir_kernel: the resampling filter; empty for nearest-neighbour and mean pooling.
        input_pyramid: feed the downsampled input to every level ("residual").
        skip_rescale: divide sums of two branches by sqrt 2.
        num_classes: 0 for an unconditional model.
        checkpoint: keep for the gradient what enters each block and attention, and compute the inside of them
            again: less memory, the same gradient, about a fifth more time.
    """

    family: str = "ncsnpp"
    channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.3
    embedding: str = "fourier"
    embedding_scale: float = 0.02
    fir_kernel: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
    input_pyramid: bool = True
    skip_rescale: bool = True
    num_classes: int = 0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        _require(self.family == "ncsnpp", "network.family", self.family, '"ncsnpp"')
        ok = self.channels >= 4 and self.channels % 4 == 0
        _require(ok, "network.channels", self.channels, "a multiple of 4, >= 4")
        ok = len(self.channel_mult) > 0 and all(m >= 1 for m in self.channel_mult)
        _require(ok, "network.channel_mult", self.channel_mult, "a list of integers >= 1")
        _require(self.blocks >= 1, "network.blocks", self.blocks, ">= 1")
        ok = all(r >= 1 for r in self.attention_resolutions)
        _require(ok, "network.attention_resolutions", self.attention_resolutions, "a list of integers >= 1")
        _require(0 <= self.dropout < 1, "network.dropout", self.dropout, "in [0, 1)")
        ok = self.embedding in ("fourier", "positional")
        _require(ok, "network.embedding", self.embedding, '"fourier" or "positional"')
        _require(self.embedding_scale > 0, "network.embedding_scale", self.embedding_scale, "> 0")
        ok = len(self.fir_kernel) == 0 or (len(self.fir_kernel) % 2 == 0 and sum(self.fir_kernel) > 0)
        _require(ok, "network.fir_kernel", self.fir_kernel, "empty, or of even length with a positive sum")
        _require(self.num_classes >= 0, "network.num_classes", self.num_classes, ">= 0 (0: unconditional)")


@dataclass(frozen=True, kw_only=True)
class ADMConfig:
    """The ADM network (Dhariwal & Nichol 2021); the defaults are those of the authors' ImageNet 64x64 model.

    Attributes:
        family: "adm".
        channels: the width that `channel_mult` multiplies; every level's is a multiple of 32.
        channel_mult: width of each level in units of `channels`; each level halves the image.
        blocks: residual blocks a level on the way down (one more on the way up).
        attention_resolutions: image heights at which self-attention follows each block.
        head_channels: channels of an attention head; divides the width of each level with attention.
        dropout: rate in [0, 1), between the last activation and the second convolution of a block.
        dropout_resolution: dropout acts in blocks whose output is at most so high; 0 for all of them.
        scale_shift: let the embedding scale and shift what is normalised (AdaGN) instead of being added
            before. iCT turns it off: it makes consistency training diverge.
        resblock_updown: resample in residual blocks; otherwise by a strided convolution, and by one after
            repeating pixels.
        embedding_scale: the factor on c_noise (1000 gives the authors' 250 log sigma).
        num_classes: 0 for an unconditional model.
        checkpoint: keep for the gradient what enters each block and attention, and compute the inside of them
            again: less memory, the same gradient, about a fifth more time.
    """

    family: str = "adm"
    channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64
    dropout: float = 0.2
    dropout_resolution: int = 16
    scale_shift: bool = False
    resblock_updown: bool = True
    embedding_scale: float = 1000.0
    num_classes: int = 0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        _require(self.family == "adm", "network.family", self.family, '"adm"')
        _require(self.channels >= 2, "network.channels", self.channels, ">= 2")
        ok = len(self.channel_mult) > 0 and all(m >= 1 and m * self.channels % 32 == 0 for m in self.channel_mult)
        allowed = f"a list of integers >= 1 that make network.channels = {self.channels} multiples of 32"
        _require(ok, "network.channel_mult", self.channel_mult, allowed)
        _require(self.blocks >= 1, "network.blocks", self.blocks, ">= 1")
        ok = all(r >= 1 for r in self.attention_resolutions)
        _require(ok, "network.attention_resolutions", self.attention_resolutions, "a list of integers >= 1")
        _require(self.head_channels >= 1, "network.head_channels", self.head_channels, ">= 1")
        _require(0 <= self.dropout < 1, "network.dropout", self.dropout, "in [0, 1)")
        _require(self.dropout_resolution >= 0, "network.dropout_resolution", self.dropout_resolution, ">= 0")
        _require(self.embedding_scale > 0, "network.embedding_scale", self.embedding_scale, "> 0")
        _require(self.num_classes >= 0, "network.num_classes", self.num_classes, ">= 0")


NetworkConfig = NCSNppConfig | ADMConfig
# network.family -> the settings of that network
_FAMILIES: dict[str, type[NCSNppConfig] | type[ADMConfig]] = {"ncsnpp": NCSNppConfig, "adm": ADMConfig}


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """The noise levels and their law in training.

    Attributes:
        sigma_min, sigma_max, rho: of `karras_sigmas`.
        sigma_data: standard deviation of the data that `scalings` assumes.
        law: of the interval between two levels, "lognormal" or "uniform" (original consistency training).
        noise_mean, noise_std: of log sigma, the `p_mean` and `p_std` of the lognormal law.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5
    law: str = "lognormal"
    noise_mean: float = -1.1
    noise_std: float = 2.0

    def __post_init__(self) -> None:
        _require(self.sigma_min > 0, "noise.sigma_min", self.sigma_min, "> 0")
        allowed = f"> noise.sigma_min = {self.sigma_min}"
        _require(self.sigma_max > self.sigma_min, "noise.sigma_max", self.sigma_max, allowed)
        _require(self.rho > 0, "noise.rho", self.rho, "> 0")
        _require(self.sigma_data > 0, "noise.sigma_data", self.sigma_data, "> 0")
        _require_choice("noise.law", self.law, LAWS)
        _require(self.noise_std > 0, "noise.noise_std", self.noise_std, "> 0")


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """The number of noise levels over time: `discretization_steps`.

    Attributes:
        schedule: "doubling", "fixed" (s1 intervals all the time), or "cm", the root of original consistency training.
        s0, s1: the first and the last number of intervals.
    """

    schedule: str = "doubling"
    s0: int = 10
    s1: int = 1280

    def __post_init__(self) -> None:
        _require_choice("curriculum.schedule", self.schedule, SCHEDULES)
        _require(self.s0 >= 1, "curriculum.s0", self.s0, ">= 1")
        _require(self.s1 >= self.s0, "curriculum.s1", self.s1, f">= curriculum.s0 = {self.s0}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The distance between neighbouring levels, and its weight.

    Attributes:
        distance: "pseudo_huber"; "l2" (squared), "l1", to compare with; "pseudo_huber_elementwise", to show a fault.
        huber_factor: the Pseudo-Huber constant is c = huber_factor * sqrt(D).
        weighting: "inverse_gap"; of the level alone "one", "snr", "snr_plus_one", "truncated_snr" or "edm".
    """

    distance: str = "pseudo_huber"
    huber_factor: float = 0.00054
    weighting: str = "inverse_gap"

    def __post_init__(self) -> None:
        _require_choice("loss.distance", self.distance, DISTANCES)
        _require_choice("loss.weighting", self.weighting, WEIGHTINGS)
        _require(self.huber_factor > 0, "loss.huber_factor", self.huber_factor, "> 0")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """What the student is compared with. In the recipe, itself; all else here is to compare that with.

    Attributes:
        decay: mu, of the moving average of the student's weights that the teacher has; 0 for the student's own.
        schedule: "constant", or "adaptive": `adaptive_decay` from mu0 = decay, nearer to 1 the more levels there are
            (original consistency training).
        share_dropout: give both the same dropout masks.
    """

    decay: float = 0.0
    schedule: str = "constant"
    share_dropout: bool = True

    def __post_init__(self) -> None:
        _require_choice("teacher.schedule", self.schedule, ("constant", "adaptive"))
        adaptive = self.schedule == "adaptive"
        allowed = 'in (0, 1) with teacher.schedule = "adaptive"' if adaptive else "in [0, 1)"
        _require(0 <= self.decay < 1 and (self.decay > 0 or not adaptive), "teacher.decay", self.decay, allowed)

    @property
    def averaged(self) -> bool:
        """Whether the teacher has weights of its own."""
        return self.decay > 0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation, and what a run leaves behind while it goes.

    Attributes:
        seed: all randomness of the run is a function of it and the step.
        total_steps: K, over which the curriculum is spread.
        batch_size: images a step, over all devices and processes.
        micro_batch: images that a device computes at a time, the gradients being added up; 0 for all of its share.
            The result is the same but for rounding.
        precision: what the network computes in, of float32 weights: "float32", which is that on every device; "tf32"
            (products and convolutions of float32 arrays as tensor cores do them, where there are any), "bf16", or
            "fp16" (with a scaled loss, for GPUs without bf16). In the last two, norms, embeddings, the last layer, the
            affine part and the distance stay float32.
        compile: let torch compile the network, which takes a minute or two; JAX always does.
        shard_weights: let each device hold a part of the weights, their average and moments, and not a copy of them.
        learning_rate, betas: of RAdam.
        ema_decay: of the weights that samples are made from; the teacher's are another matter (`TeacherConfig`).
        on_nonfinite: "stop" where a loss or the gradient is NaN or infinite, or "skip": leave the weights as they
            are in such a step, and count it.
        log_every, sample_every, checkpoint_every: in steps; the last two 0 for never, but the last step
            always leaves samples and a checkpoint.
        keep_checkpoints: how many of the newest to keep; 0 for all.
        keep_every: keep also those of every so many steps; 0 for none of them.
        tensorboard: write scalars and sample pictures for TensorBoard, too.
    """

    seed: int = 0
    total_steps: int = 400_000
    batch_size: int = 1024
    micro_batch: int = 0
    precision: str = "float32"
    compile: bool = False
    shard_weights: bool = False
    learning_rate: float = 1e-4
    betas: tuple[float, ...] = (0.9, 0.999)
    ema_decay: float = 0.99993
    on_nonfinite: str = "stop"
    log_every: int = 50
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    keep_every: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "train.seed", self.seed, "in [0, 2^63)")
        _require(self.total_steps >= 1, "train.total_steps", self.total_steps, ">= 1")
        _require(self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1")
        ok = self.micro_batch == 0 or (self.micro_batch > 0 and self.batch_size % self.micro_batch == 0)
        allowed = f"a divisor of train.batch_size = {self.batch_size} (or 0: all)"
        _require(ok, "train.micro_batch", self.micro_batch, allowed)
        _require_choice("train.precision", self.precision, ("float32", "tf32", "bf16", "fp16"))
        allowed = "false with train.shard_weights = true"
        _require(not (self.compile and self.shard_weights), "train.compile", self.compile, allowed)
        _require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "> 0")
        ok = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        _require(ok, "train.betas", self.betas, "two numbers in [0, 1)")
        _require(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "in [0, 1)")
        ok = self.on_nonfinite in ("stop", "skip")
        _require(ok, "train.on_nonfinite", self.on_nonfinite, '"stop" or "skip"')
        _require(self.log_every >= 1, "train.log_every", self.log_every, ">= 1")
        zeros = {"sample_every": "never", "checkpoint_every": "never", "keep_checkpoints": "all", "keep_every": "none"}
        for name, zero in zeros.items():
            value = getattr(self, name)
            _require(value >= 0, f"train.{name}", value, f">= 0 (0: {zero})")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Sampling defaults.

    Attributes:
        second_sigma: the second level of two-step sampling, which the literature tunes per data set.
    """

    second_sigma: float = 0.821

    def __post_init__(self) -> None:
        _require(self.second_sigma > 0, "sample.second_sigma", self.second_sigma, "> 0")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measuring while training: one-step samples of the averaged weights against the data, of their pixels.

    Attributes:
        every: in steps, and after the last one; 0 for never.
        num: how many samples; 0 for 1,000, or as many as the metric needs.
        metric: "pixel-fd" (Frechet distance), "kid" (kernel distance) or "sw" (sliced Wasserstein distance); the
            checkpoint where it is smallest is kept.
    """

    every: int = 0
    num: int = 0
    metric: str = "pixel-fd"

    def __post_init__(self) -> None:
        _require(self.every >= 0, "eval.every", self.every, ">= 0 (0: never)")
        ok = self.num == 0 or self.num >= 2
        _require(ok, "eval.num", self.num, ">= 2 (or 0: as many as are needed)")
        ok = self.metric in ("pixel-fd", "kid", "sw")
        _require(ok, "eval.metric", self.metric, '"pixel-fd", "kid" or "sw"')


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Sections check themselves; this checks what they must agree on."""

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NCSNppConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        _, height, width = self.data.shape
        _require(height == width, "data.shape", self.data.shape, "square")
        factor = 2 ** (len(self.network.channel_mult) - 1)
        levels = len(self.network.channel_mult)
        allowed = f"of a size that divides by {factor}, since network.channel_mult has {levels} levels"
        _require(height % factor == 0, "data.shape", self.data.shape, allowed)
        lo, hi = self.noise.sigma_min, self.noise.sigma_max
        _require(
            lo <= self.sample.second_sigma < hi, "sample.second_sigma", self.sample.second_sigma, f"in [{lo:g}, {hi:g})"
        )

    def to_toml(self) -> str:
        """The configuration as a TOML document that `Config.load` reads back to an equal one."""
        blocks = []
        for section in fields(self):
            value = getattr(self, section.name)
            lines = [f"{f.name} = {_literal(getattr(value, f.name))}" for f in fields(value)]
            blocks.append("\n".join([f"[{section.name}]", *lines]))
        return "\n\n".join(blocks) + "\n"

    @staticmethod
    def load(path: Path) -> Config:
        """The configuration that a TOML file holds over the defaults."""
        return build_config(read_toml(path))

    def flat(self) -> dict[str, Any]:
        """Every value under its dotted name."""
        return {
            f"{section.name}.{f.name}": getattr(getattr(self, section.name), f.name)
            for section in fields(self)
            for f in fields(getattr(self, section.name))
        }


Tree = Mapping[str, Mapping[str, Any]]


def preset_names() -> list[str]:
    """The names that `load_preset` takes."""
    return sorted(p.stem for p in PRESETS.glob("*.toml"))


def load_preset(name: str) -> Config:
    """A preset's configuration. Raises ConfigError, naming the presets there are."""
    return build_config(preset_tree(name))


def preset_tree(name: str) -> Tree:
    """A preset's TOML as nested dicts, to be merged with others before `build_config`."""
    if name not in preset_names():
        raise ConfigError(
            f"unknown preset {_literal(name)}{_suggest(name, preset_names())}; there are {', '.join(preset_names())}"
        )
    return read_toml(PRESETS / f"{name}.toml")


def read_toml(path: Path) -> Tree:
    """A TOML file of sections as nested dicts. Raises ConfigError where it is no such file."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from None
    for name, section in tree.items():
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: {name} must stand in a section such as [train]")
    return tree


def parse_assignment(text: str) -> Tree:
    """The `a.b=value` of the command line; the value is TOML, or else a bare string."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"--set {_literal(text)} must be SECTION.KEY=VALUE, such as train.batch_size=64")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return {section: {key: parsed}}


def merge(trees: Iterable[Tree]) -> Tree:
    """One tree in which later values replace earlier ones."""
    merged: dict[str, dict[str, Any]] = {}
    for tree in trees:
        for section, values in tree.items():
            merged.setdefault(section, {}).update(values)
    return merged


def build_config(tree: Tree) -> Config:
    """The configuration of nested dicts: names, types and ranges checked, defaults filled in.

    Raises:
        ConfigError: for an unknown name (with the nearest known one), a wrong type, a bad value.
    """
    return Config(**build_sections(tree))


def build_sections(tree: Tree) -> dict[str, Any]:
    """The sections that `tree` names, each checked by itself; `Config` checks what they must agree on."""
    types = typing.get_type_hints(Config)
    for section in tree:
        if section not in types:
            raise ConfigError(f"unknown section [{section}]{_suggest(section, types)}")
    if "network" in tree:
        types["network"] = _network_type(tree["network"].get("family", "ncsnpp"))
    return {name: _build_section(name, types[name], tree[name]) for name in tree}


def _network_type(family: object) -> type[NCSNppConfig] | type[ADMConfig]:
    """The class of settings of a network family. Raises ConfigError, naming the families there are."""
    if not isinstance(family, str) or family not in _FAMILIES:
        allowed = " or ".join(map(_literal, _FAMILIES))
        raise ConfigError(f"network.family must be {allowed}, not {_literal(family)}")
    return _FAMILIES[family]


def _build_section(section: str, kind: type[Any], values: Mapping[str, Any]) -> Any:
    types = typing.get_type_hints(kind)
    sections = typing.get_type_hints(Config) | {section: kind}
    every_name = [f"{s}.{f.name}" for s, t in sections.items() if dataclasses.is_dataclass(t) for f in fields(t)]
    for key in values:
        if key not in types:
            name = f"{section}.{key}"
            raise ConfigError(f"unknown key {name}{_suggest(name, every_name)}")
    return kind(**{key: _coerce(f"{section}.{key}", types[key], value) for key, value in values.items()})


def _coerce(name: str, kind: Any, value: Any) -> Any:
    """`value` as `kind`; integers become floats and lists become tuples, nothing else is converted."""
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        _require(isinstance(value, (list, tuple)), name, value, f"a list of {_KINDS[item]}s")
        return tuple(_coerce(name, item, v) for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    _require(type(value) is kind, name, value, f"a{'n' if kind is int else ''} {_KINDS[kind]}")
    if kind is float:
        _require(math.isfinite(value), name, value, "finite")
    return value


_KINDS = {int: "integer", float: "number", str: "string", bool: "boolean (true or false)"}


def _suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _literal(value: object) -> str:
    """A TOML literal: JSON's notation for these types, where the number is finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def replace(config: Config, **sections: Mapping[str, Any]) -> Config:
    """A copy with some values changed: `replace(config, train={"seed": 1})`."""
    changed = {s: dataclasses.replace(getattr(config, s), **values) for s, values in sections.items()}
    return dataclasses.replace(config, **changed)
