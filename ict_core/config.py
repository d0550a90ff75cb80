"""The settings of a run: frozen dataclasses, each with its range, and what they must agree on.

A configuration is made of sections of plain values, so that every value has one dotted name (`train.learning_rate`) in
TOML files, on the command line and in the printed result alike. `ict_core.settings` reads and writes them.
"""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, NamedTuple

from ict_core.curriculum import SCHEDULES
from ict_core.loss import DISTANCES, WEIGHTINGS
from ict_core.noise_law import LAWS


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type or out of range; the message is one line."""


class Rule(NamedTuple):
    """The range of a setting.

    Attributes:
        words: what is allowed, as errors and docs/settings.md say it.
        holds: whether a value of the setting's type is allowed.
        choices: all values there are, for a setting that is one of several words.
    """

    words: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def above(bound: float) -> Rule:
    """Numbers > bound."""
    return Rule(f"> {bound:g}", lambda value: value > bound)


def at_least(bound: int, *, zero: str = "") -> Rule:
    """Integers >= bound; `zero` says what 0 means where that is something else."""
    if bound == 0 or not zero:
        return Rule(f">= {bound}" + (f" (0: {zero})" if zero else ""), lambda value: value >= bound)
    return Rule(f">= {bound} (or 0: {zero})", lambda value: value == 0 or value >= bound)


def below_one() -> Rule:
    """Numbers in [0, 1)."""
    return Rule("in [0, 1)", lambda value: 0 <= value < 1)


def one_of(choices: Iterable[str]) -> Rule:
    """One of several words."""
    words = tuple(choices)
    *others, last = map(literal, words)
    return Rule(f"{', '.join(others)} or {last}" if others else last, lambda value: value in words, words)


def integers(*, empty: bool) -> Rule:
    """Lists of integers >= 1."""
    return Rule("a list of integers >= 1", lambda values: (empty or len(values) > 0) and all(v >= 1 for v in values))


def rules_of(section: type[object]) -> dict[str, Rule]:
    """The range of each field of a section that has one of its own, by name."""
    hints = typing.get_type_hints(section, include_extras=True)
    metadata = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: rule for name, rules in metadata.items() for rule in rules if isinstance(rule, Rule)}


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise ConfigError, naming the setting, what is allowed and the value, unless `ok`."""
    if not ok:
        raise ConfigError(f"{name} must be {allowed}, not {literal(value)}")


def literal(value: object) -> str:
    """A value as TOML has it, whose notation for these types is JSON's, as long as a number is finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def check_ranges(name: str, section: object) -> None:
    """Raise ConfigError where a value of a section, called `name`, is out of its range."""
    for key, rule in rules_of(type(section)).items():
        value = getattr(section, key)
        require(rule.holds(value), f"{name}.{key}", value, rule.words)


IMAGE_SHAPE = Rule("[channels, height, width], each >= 1", lambda shape: len(shape) == 3 and all(s >= 1 for s in shape))
FIR_KERNEL = Rule(
    "empty, or of even length with a positive sum",
    lambda taps: len(taps) == 0 or (len(taps) % 2 == 0 and sum(taps) > 0),
)
BETAS = Rule("two numbers in [0, 1)", lambda betas: len(betas) == 2 and all(0 <= b < 1 for b in betas))


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

    source: Annotated[str, Rule('"digits" or a path', lambda source: source != "")] = "digits"
    shape: Annotated[tuple[int, ...], IMAGE_SHAPE] = (1, 8, 8)
    size: Annotated[int, at_least(2, zero="as they are")] = 0
    crop: Annotated[str, one_of(("none", "center"))] = "none"
    flip: bool = False
    hold: Annotated[str, one_of(("auto", "device", "host"))] = "auto"

    def __post_init__(self) -> None:
        check_ranges("data", self)

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

    family: Annotated[str, one_of(("ncsnpp",))] = "ncsnpp"
    channels: Annotated[int, Rule("a multiple of 4, >= 4", lambda n: n >= 4 and n % 4 == 0)] = 128
    channel_mult: Annotated[tuple[int, ...], integers(empty=False)] = (2, 2, 2)
    blocks: Annotated[int, at_least(1)] = 4
    attention_resolutions: Annotated[tuple[int, ...], integers(empty=True)] = (16,)
    dropout: Annotated[float, below_one()] = 0.3
    embedding: Annotated[str, one_of(("fourier", "positional"))] = "fourier"
    embedding_scale: Annotated[float, above(0)] = 0.02
    fir_kernel: Annotated[tuple[float, ...], FIR_KERNEL] = (1.0, 3.0, 3.0, 1.0)
    input_pyramid: bool = True
    skip_rescale: bool = True
    num_classes: Annotated[int, at_least(0, zero="unconditional")] = 0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_ranges("network", self)


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

    family: Annotated[str, one_of(("adm",))] = "adm"
    channels: Annotated[int, at_least(2)] = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    blocks: Annotated[int, at_least(1)] = 3
    attention_resolutions: Annotated[tuple[int, ...], integers(empty=True)] = (32, 16, 8)
    head_channels: Annotated[int, at_least(1)] = 64
    dropout: Annotated[float, below_one()] = 0.2
    dropout_resolution: Annotated[int, at_least(0)] = 16
    scale_shift: bool = False
    resblock_updown: bool = True
    embedding_scale: Annotated[float, above(0)] = 1000.0
    num_classes: Annotated[int, at_least(0)] = 0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_ranges("network", self)
        ok = len(self.channel_mult) > 0 and all(m >= 1 and m * self.channels % 32 == 0 for m in self.channel_mult)
        allowed = f"a list of integers >= 1 that make network.channels = {self.channels} multiples of 32"
        require(ok, "network.channel_mult", self.channel_mult, allowed)


NetworkConfig = NCSNppConfig | ADMConfig
# network.family -> the settings of that network
FAMILIES: dict[str, type[NCSNppConfig] | type[ADMConfig]] = {"ncsnpp": NCSNppConfig, "adm": ADMConfig}


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """The noise levels and their law in training.

    Attributes:
        sigma_min, sigma_max, rho: of `karras_sigmas`.
        sigma_data: standard deviation of the data that `scalings` assumes.
        law: of the interval between two levels, "lognormal" or "uniform" (original consistency training).
        p_mean, p_std: mean and standard deviation of log sigma in the lognormal law.
    """

    sigma_min: Annotated[float, above(0)] = 0.002
    sigma_max: float = 80.0
    rho: Annotated[float, above(0)] = 7.0
    sigma_data: Annotated[float, above(0)] = 0.5
    law: Annotated[str, one_of(LAWS)] = "lognormal"
    p_mean: float = -1.1
    p_std: Annotated[float, above(0)] = 2.0

    def __post_init__(self) -> None:
        check_ranges("noise", self)
        allowed = f"> noise.sigma_min = {self.sigma_min}"
        require(self.sigma_max > self.sigma_min, "noise.sigma_max", self.sigma_max, allowed)


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """The number of noise levels over time: `discretization_steps`.

    Attributes:
        schedule: "doubling", "fixed" (s1 intervals all the time), or "cm", the root of original consistency training.
        s0, s1: the first and the last number of intervals.
    """

    schedule: Annotated[str, one_of(SCHEDULES)] = "doubling"
    s0: Annotated[int, at_least(1)] = 10
    s1: int = 1280

    def __post_init__(self) -> None:
        check_ranges("curriculum", self)
        require(self.s1 >= self.s0, "curriculum.s1", self.s1, f">= curriculum.s0 = {self.s0}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The distance between neighbouring levels, and its weight.

    Attributes:
        distance: "pseudo_huber"; "l2" (squared), "l1", to compare with; "pseudo_huber_elementwise", to show a fault.
        huber_factor: the Pseudo-Huber constant is c = huber_factor * sqrt(D).
        weighting: "inverse_gap"; of the level alone "one", "snr", "snr_plus_one", "truncated_snr" or "edm".
    """

    distance: Annotated[str, one_of(DISTANCES)] = "pseudo_huber"
    huber_factor: Annotated[float, above(0)] = 0.00054
    weighting: Annotated[str, one_of(WEIGHTINGS)] = "inverse_gap"

    def __post_init__(self) -> None:
        check_ranges("loss", self)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """What the student is compared with. In the recipe, itself; all else here is to compare that with.

    Attributes:
        decay: mu, of the moving average of the student's weights that the teacher has; 0 for the student's own.
        schedule: "constant", or "adaptive": `adaptive_decay` from mu0 = decay, nearer to 1 the more levels there are
            (original consistency training).
        share_dropout: give both the same dropout masks.
    """

    decay: Annotated[float, below_one()] = 0.0
    schedule: Annotated[str, one_of(("constant", "adaptive"))] = "constant"
    share_dropout: bool = True

    def __post_init__(self) -> None:
        adaptive = self.schedule == "adaptive"
        allowed = 'in (0, 1) with teacher.schedule = "adaptive"'
        require(not adaptive or 0 < self.decay < 1, "teacher.decay", self.decay, allowed)
        check_ranges("teacher", self)

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

    seed: Annotated[int, Rule("in [0, 2^63)", lambda seed: 0 <= seed < 2**63)] = 0
    total_steps: Annotated[int, at_least(1)] = 400_000
    batch_size: Annotated[int, at_least(1)] = 1024
    micro_batch: int = 0
    precision: Annotated[str, one_of(("float32", "tf32", "bf16", "fp16"))] = "float32"
    compile: bool = False
    shard_weights: bool = False
    learning_rate: Annotated[float, above(0)] = 1e-4
    betas: Annotated[tuple[float, ...], BETAS] = (0.9, 0.999)
    ema_decay: Annotated[float, below_one()] = 0.99993
    on_nonfinite: Annotated[str, one_of(("stop", "skip"))] = "stop"
    log_every: Annotated[int, at_least(1)] = 50
    sample_every: Annotated[int, at_least(0, zero="never")] = 1000
    checkpoint_every: Annotated[int, at_least(0, zero="never")] = 1000
    keep_checkpoints: Annotated[int, at_least(0, zero="all")] = 2
    keep_every: Annotated[int, at_least(0, zero="none")] = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_ranges("train", self)
        ok = self.micro_batch == 0 or (self.micro_batch > 0 and self.batch_size % self.micro_batch == 0)
        allowed = f"a divisor of train.batch_size = {self.batch_size} (or 0: all)"
        require(ok, "train.micro_batch", self.micro_batch, allowed)
        allowed = "false with train.shard_weights = true"
        require(not (self.compile and self.shard_weights), "train.compile", self.compile, allowed)


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Sampling defaults.

    Attributes:
        second_sigma: the second level of two-step sampling, which the literature tunes per data set.
    """

    second_sigma: Annotated[float, above(0)] = 0.821

    def __post_init__(self) -> None:
        check_ranges("sample", self)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measuring while training: one-step samples of the averaged weights against the data, of their pixels.

    Attributes:
        every: in steps, and after the last one; 0 for never.
        num: how many samples; 0 for 1,000, or as many as the metric needs.
        metric: "pixel-fd" (Frechet distance), "kid" (kernel distance) or "sw" (sliced Wasserstein distance); the
            checkpoint where it is smallest is kept.
    """

    every: Annotated[int, at_least(0, zero="never")] = 0
    num: Annotated[int, at_least(2, zero="as many as are needed")] = 0
    metric: Annotated[str, one_of(("pixel-fd", "kid", "sw"))] = "pixel-fd"

    def __post_init__(self) -> None:
        check_ranges("eval", self)


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
        require(height == width, "data.shape", self.data.shape, "square")
        factor = 2 ** (len(self.network.channel_mult) - 1)
        levels = len(self.network.channel_mult)
        allowed = f"of a size that divides by {factor}, since network.channel_mult has {levels} levels"
        require(height % factor == 0, "data.shape", self.data.shape, allowed)
        lo, hi = self.noise.sigma_min, self.noise.sigma_max
        require(
            lo <= self.sample.second_sigma < hi, "sample.second_sigma", self.sample.second_sigma, f"in [{lo:g}, {hi:g})"
        )

    def to_toml(self) -> str:
        """The configuration as a TOML document that `load_config` reads back to an equal one."""
        blocks = []
        for section in fields(self):
            value = getattr(self, section.name)
            lines = [f"{f.name} = {literal(getattr(value, f.name))}" for f in fields(value)]
            blocks.append("\n".join([f"[{section.name}]", *lines]))
        return "\n\n".join(blocks) + "\n"

    def flat(self) -> dict[str, Any]:
        """Every value under its dotted name."""
        return {
            f"{section.name}.{f.name}": getattr(getattr(self, section.name), f.name)
            for section in fields(self)
            for f in fields(getattr(self, section.name))
        }
