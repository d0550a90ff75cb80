"""The settings of a run: frozen dataclasses, each with its range, and what they must agree on.

A configuration is made of sections of plain values, so that every value has one dotted name (`train.learning_rate`) in
TOML files, on the command line and in the printed result alike. `ict_core.settings` reads them. The descriptions under
"Attributes" are the text of docs/settings.md and of `ict show --settings`, and so are the sources of the defaults under
"Sources"; a default of no source is chosen here.
"""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, NamedTuple

from ict_core._arrays import Array, Namespace
from ict_core.curriculum import SCHEDULES
from ict_core.ema import LENGTHS, is_length, power_exponent
from ict_core.gap import Gap
from ict_core.grid import Grid, make_grid
from ict_core.learning_rate import DECAYS
from ict_core.loss import DISTANCES, WEIGHTINGS, ConsistencyFunction
from ict_core.noise_law import LAWS
from ict_core.ode import heun_sample, heun_sigmas
from ict_core.parameterization import Network, consistency_output
from ict_core.sampling import multistep_sample


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type or out of range; the message is one line.

    Line breaks and other control characters in it, which names in a file can contain, become spaces.
    """

    def __init__(self, message: object) -> None:
        super().__init__("".join(c if c.isprintable() else " " for c in str(message)))


class Rule(NamedTuple):
    """The range of a setting.

    Attributes:
        words: what is allowed, in the words of errors and of docs/settings.md.
        holds: whether a value of the setting's type is allowed.
        choices: all allowed values of a setting that is one of several words; else empty.
    """

    words: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def above(bound: float) -> Rule:
    """Numbers > bound."""
    return Rule(f"> {bound:g}", lambda value: value > bound)


def at_least(bound: int, *, zero: str = "", most: int | None = None) -> Rule:
    """Integers >= bound, and 0 where it has a meaning of its own, which `zero` gives in words; at most `most`."""
    words = f">= {bound}" if most is None else f">= {bound} and <= {most}"
    meaning = f" ({'or ' if bound else ''}0: {zero})" if zero else ""

    def holds(value: int) -> bool:
        return (bool(zero) and value == 0) or (value >= bound and (most is None or value <= most))

    return Rule(words + meaning, holds)


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
    """The rule of each setting of a section, by name; settings that may have any value of their type have none."""
    hints = typing.get_type_hints(section, include_extras=True)
    metadata = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: rule for name, rules in metadata.items() for rule in rules if isinstance(rule, Rule)}


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise ConfigError, naming the setting, what is allowed and the value, unless `ok`."""
    if not ok:
        raise ConfigError(f"{name} must be {allowed}, not {literal(value)}")


def literal(value: object) -> str:
    """A value in the notation of TOML, which for these types, and finite numbers, is that of JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, tuple):
        value = list(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):  # Python does not write out numbers of thousands of digits
        return f"a {type(value).__name__} that is too long or too deep"


def check_ranges(name: str, section: object) -> None:
    """Raise ConfigError if a value of the section called `name` is out of its range."""
    for key, rule in rules_of(type(section)).items():
        value = getattr(section, key)
        require(rule.holds(value), f"{name}.{key}", value, rule.words)


# More than anyone has, and less than would fill a machine before the first image: classes, images a step, levels of
# noise, blocks a level, and pixels of an image's height or width.
_MOST_CLASSES, _MOST_BATCH, _MOST_INTERVALS, _MOST_BLOCKS, _MOST_PIXELS = 10**6, 10**6, 10**5, 1000, 2**14
# Steps are counted in 32 bits.
_MOST_STEPS = 2**31 - 1
# From each level to the next, the image halves.
_MOST_LEVELS = 14
IMAGE_SHAPE = Rule(
    f"[channels, height, width], each >= 1 and <= {_MOST_PIXELS}",
    lambda shape: len(shape) == 3 and all(1 <= s <= _MOST_PIXELS for s in shape),
)
_MOST_RESAMPLED = 4096
IMAGE_SIZE = Rule(
    f">= 2 and <= {_MOST_RESAMPLED} (or 0: as they are), or [height, width], each in this range",
    lambda size: (
        size == 0 or 2 <= size <= _MOST_RESAMPLED
        if isinstance(size, int)
        else len(size) == 2 and all(2 <= s <= _MOST_RESAMPLED for s in size)
    ),
)
FIR_KERNEL = Rule(
    "empty, or of even length with a positive sum",
    lambda taps: len(taps) == 0 or (len(taps) % 2 == 0 and sum(taps) > 0),
)
NOT_NEGATIVE = Rule(">= 0 (0: none)", lambda value: 0 <= value < math.inf)
AVERAGES = Rule(
    f"a list of different numbers {LENGTHS}",
    lambda lengths: len(set(lengths)) == len(lengths) and all(map(is_length, lengths)),
)
BETAS = Rule("two numbers in [0, 1)", lambda betas: len(betas) == 2 and all(0 <= b < 1 for b in betas))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from and what they are.

    Attributes:
        source: "digits" (embedded), "hf:NAME" for a Hugging Face dataset, or a path.
        shape: [channels, height, width] of an image; height and width divide by 2 once for each level of
            `network.channel_mult` after the first.
        size: the size to which images are resampled when they are read: a number for squares, or [height, width]; 0
            leaves them as they are.
        crop: "center" first cuts each image to the largest part in its middle that has the proportions of `size`, a
            square without it; "none" does not.
        flip: mirror each image left to right with probability 1/2.
        hold: where the images are kept while training: on the "device"; on the "host", from which the images of a step
            are copied while the step before is computed; "auto" takes the device if they fill at most a third of its
            free memory.
    """

    source: Annotated[str, Rule('"digits" or a path', lambda source: source != "")] = "digits"
    shape: Annotated[tuple[int, ...], IMAGE_SHAPE] = (1, 8, 8)
    size: Annotated[int | tuple[int, ...], IMAGE_SIZE] = 0
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
        channels: nf, the width that `channel_mult` multiplies.
        channel_mult: the width of each level in units of `channels`; from each level to the next, the image halves.
        blocks: residual blocks a level on the way down; there is one more on the way up.
        attention_resolutions: the image heights at which self-attention follows each block, whatever the width.
        dropout: the share of activations that is dropped between the two convolutions of a block.
        embedding: the features of c_noise = log(sigma) / 4 that the network is given.
        embedding_scale: with "fourier", the standard deviation of the frequencies; with "positional", the factor on
            c_noise (1000 gives the authors' 250 log sigma).
        fir_kernel: the filter for resampling; if empty, pixels are repeated on the way up and averaged on the way down.
        input_pyramid: feed the downsampled input to every level ("residual").
        skip_rescale: divide the sum of two branches by sqrt 2.
        num_classes: the number of classes; 0 makes the model unconditional.
        labels_at: where classes enter: the "embedding", the result of the two dense layers of the noise level, gets a
            row a class added; or the "features" that enter these layers get a dense layer of the class added, as in
            EDM's networks.
        checkpoint: keep only the inputs of blocks and attention for the gradient, and compute the rest again: less
            memory, the same gradient, about a fifth more time.

    Sources:
        the authors' CIFAR-10 networks: family, channels, channel_mult, blocks, attention_resolutions, embedding,
            fir_kernel, input_pyramid, skip_rescale, num_classes
        iCT sec. 3.1: dropout, embedding_scale
        EDM: labels_at
    """

    family: Annotated[str, one_of(("ncsnpp",))] = "ncsnpp"
    channels: Annotated[int, Rule("a multiple of 4, >= 4", lambda n: n >= 4 and n % 4 == 0)] = 128
    channel_mult: Annotated[tuple[int, ...], integers(empty=False)] = (2, 2, 2)
    blocks: Annotated[int, at_least(1, most=_MOST_BLOCKS)] = 4
    attention_resolutions: Annotated[tuple[int, ...], integers(empty=True)] = (16,)
    dropout: Annotated[float, below_one()] = 0.3
    embedding: Annotated[str, one_of(("fourier", "positional"))] = "fourier"
    embedding_scale: Annotated[float, above(0)] = 0.02
    fir_kernel: Annotated[tuple[float, ...], FIR_KERNEL] = (1.0, 3.0, 3.0, 1.0)
    input_pyramid: bool = True
    skip_rescale: bool = True
    num_classes: Annotated[int, at_least(0, zero="unconditional", most=_MOST_CLASSES)] = 0
    labels_at: Annotated[str, one_of(("embedding", "features"))] = "embedding"
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_ranges("network", self)


@dataclass(frozen=True, kw_only=True)
class ADMConfig:
    """The ADM network (Dhariwal & Nichol 2021); the defaults are those of the authors' ImageNet 64x64 model.

    Attributes:
        family: "adm".
        channels: the width that `channel_mult` multiplies.
        channel_mult: the width of each level in units of `channels`: integers >= 1 that make every width a multiple of
            32. From each level to the next, the image halves.
        min_group_channels: the fewest channels in a group of a norm: a width has min(32, width / this) groups, so that
            1 always makes 32; EDM's networks have 4. Above 1, widths may be other multiples of it, too.
        blocks: residual blocks a level on the way down; there is one more on the way up.
        attention_resolutions: the image heights at which self-attention follows each block, whatever the width.
        head_channels: the channels of an attention head; divides the width of each level with attention.
        normalize_qkv: divide the queries, keys and values of each head and pixel by 1e-4 + the root mean square of
            their channels, which keeps the training of the large networks from diverging (docs/scale.md).
        dropout: the share of activations that is dropped before the second convolution of a block.
        dropout_resolution: only blocks whose output is at most this high have dropout; 0 gives it to all blocks.
        scale_shift: scale and shift the normalised activations by the embedding (AdaGN), instead of adding it before
            they are normalised. iCT turns this off, since it makes consistency training diverge.
        resblock_updown: resample within residual blocks; if false, a strided convolution halves the image, and
            repeated pixels and a convolution double it.
        embedding_scale: the factor on c_noise (1000 gives the authors' 250 log sigma).
        num_classes: the number of classes; 0 makes the model unconditional.
        checkpoint: keep only the inputs of blocks and attention for the gradient, and compute the rest again: less
            memory, the same gradient, about a fifth more time.

    Sources:
        the authors' ImageNet 64x64 networks: family, channels, channel_mult, blocks, attention_resolutions,
            head_channels, resblock_updown, embedding_scale
        iCT app.: dropout, dropout_resolution
        iCT sec. 3.1: scale_shift
        EDM: min_group_channels
        Li et al. 2024 (arXiv 2403.18035): normalize_qkv
    """

    family: Annotated[str, one_of(("adm",))] = "adm"
    channels: Annotated[int, at_least(2)] = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    min_group_channels: Annotated[int, Rule("1, 2, 4, 8, 16 or 32", lambda n: n in (1, 2, 4, 8, 16, 32))] = 1
    blocks: Annotated[int, at_least(1, most=_MOST_BLOCKS)] = 3
    attention_resolutions: Annotated[tuple[int, ...], integers(empty=True)] = (32, 16, 8)
    head_channels: Annotated[int, at_least(1)] = 64
    normalize_qkv: bool = False
    dropout: Annotated[float, below_one()] = 0.2
    dropout_resolution: Annotated[int, at_least(0)] = 16
    scale_shift: bool = False
    resblock_updown: bool = True
    embedding_scale: Annotated[float, above(0)] = 1000.0
    num_classes: Annotated[int, at_least(0, zero="unconditional", most=_MOST_CLASSES)] = 0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_ranges("network", self)
        unit = 32 if self.min_group_channels == 1 else self.min_group_channels
        ok = len(self.channel_mult) > 0 and all(m >= 1 and m * self.channels % unit == 0 for m in self.channel_mult)
        allowed = f"a list of integers >= 1 that make network.channels = {self.channels} multiples of {unit}"
        require(ok, "network.channel_mult", self.channel_mult, allowed)


NetworkConfig = NCSNppConfig | ADMConfig
# network.family -> the settings of that network
FAMILIES: dict[str, type[NCSNppConfig] | type[ADMConfig]] = {"ncsnpp": NCSNppConfig, "adm": ADMConfig}


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """The noise levels and their law in training; makes the grid, the consistency function and samples that fit them.

    Attributes:
        sigma_min: the smallest level; pixels are in [-1, 1].
        sigma_max: the largest level, > `sigma_min`.
        rho: how much `karras_sigmas` crowds the levels towards the smallest.
        sigma_data: the standard deviation of the data that `scalings` assumes.
        law: how the interval between two levels is drawn; "uniform" is original consistency training.
        p_mean: the mean of log sigma in the lognormal law.
        p_std: the standard deviation of log sigma in the lognormal law.

    Sources:
        EDM table 1: sigma_min, sigma_max, rho, sigma_data
        iCT sec. 3.5: law, p_mean, p_std
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

    def grid(self, n: int, *, weighting: str = "inverse_gap") -> Grid:
        """`make_grid` of n levels, n from `discretization_steps` or a `Stage`."""
        return make_grid(n, **{f.name: getattr(self, f.name) for f in fields(self)}, weighting=weighting)

    def gap(self, share: float, *, k: float = 8.0, b: float = 1.0, weighting: str = "inverse_gap") -> Gap:
        """The `Gap` of a stage, in place of a grid; share from `gap_share`."""
        names = ("sigma_min", "p_mean", "p_std", "sigma_data")
        return Gap(share=share, k=k, b=b, weighting=weighting, **{name: getattr(self, name) for name in names})

    def consistency_function(
        self, network: Network[Array], condition: Any = None, *, xp: Namespace | None = None
    ) -> ConsistencyFunction[Array]:
        """The consistency function f(x, sigma) of a network under a condition: `consistency_output`.

        Args:
            network: F(x_in, c_noise, condition), returning the shape of x_in.
            condition: whatever the network takes.
            xp: array namespace; inferred from x when omitted.
        """

        def f(x: Array, sigma: Array, /) -> Array:
            sigma_data, sigma_min = self.sigma_data, self.sigma_min
            return consistency_output(network, x, sigma, condition, sigma_data=sigma_data, sigma_min=sigma_min, xp=xp)

        return f

    def sample(
        self,
        f: ConsistencyFunction[Array],
        noises: Array | Sequence[Array],
        later_sigmas: Sequence[float] = (),
        *,
        clip: bool = False,
        xp: Namespace | None = None,
    ) -> Array:
        """`multistep_sample` from `sigma_max`: in one step, or in as many more as there are later levels.

        Args:
            f: from `consistency_function`.
            noises: one [b, *event] standard normal array a step: a sequence, or one stacked array.
            later_sigmas: falling levels below `sigma_max`, at least `sigma_min`.
            clip: clip the result to [-1, 1].
            xp: array namespace; inferred from the noise when omitted.

        Returns:
            [b, *event] in the dtype of the noise.
        """
        sigmas = [self.sigma_max, *later_sigmas]
        return multistep_sample(f, noises, sigmas, sigma_min=self.sigma_min, clip=clip, xp=xp)

    def solve(
        self,
        f: ConsistencyFunction[Array],
        noise: Array,
        steps: int = 18,
        *,
        clip: bool = False,
        xp: Namespace | None = None,
    ) -> Array:
        """`heun_sample` from `sigma_max` to `sigma_min`: the samples of a model that is trained as a diffusion model.

        Args:
            f: from `consistency_function`; it is evaluated 2 `steps` - 1 times.
            noise: [b, *event] standard normal.
            steps: >= 1.
            clip: clip the result to [-1, 1].
            xp: array namespace; inferred from the noise when omitted.

        Returns:
            [b, *event] in the dtype of the noise.
        """
        sigmas = heun_sigmas(steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)
        return heun_sample(f, noise, sigmas, sigma_end=self.sigma_min, clip=clip, xp=xp)


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """The number of noise levels over time: `discretization_steps`.

    Attributes:
        schedule: "doubling" is the recipe's; "fixed" has `s1` intervals in every step; "cm" grows like a square root,
            as original consistency training does. "gap" has no grid of levels but continuous ones, each with a teacher
            a share below it, for tuning a diffusion model (`teacher_level`). "diffusion" trains such a model: the
            teacher's level is `noise.sigma_min`, where no teacher is needed.
        s0: the first number of intervals between levels.
        s1: the last number of intervals, >= `s0` and <= 100,000.
        steps: the number of steps over which levels are added, after which their number stays; 0 for all of
            `train.total_steps`. A run that is made longer keeps those that it had.
        gap_q: with "gap", the factor by which the share falls from each stage to the next, q > 1; the first is 1 / q.
        gap_k: with "gap", how much wider the gap is at small levels, k.
        gap_b: with "gap", the steepness of the way from small levels to large ones, b.
        gap_stages: with "gap", the number of stages.
        gap_limit: with "gap", where 1 - share stays; a smaller share is lost in float32.

    Sources:
        iCT sec. 3.4: schedule, s0, s1, steps
        Geng et al. 2024 (ECT): gap_q, gap_k, gap_b, gap_stages
        Lee et al. 2024 (TCM): gap_limit
    """

    schedule: Annotated[str, one_of((*SCHEDULES, "gap", "diffusion"))] = "doubling"
    s0: Annotated[int, at_least(1)] = 10
    s1: int = 1280
    steps: Annotated[int, at_least(0, zero="all")] = 0
    gap_q: Annotated[float, above(1)] = 2.0
    gap_k: Annotated[float, Rule(">= 0", lambda k: k >= 0)] = 8.0
    gap_b: Annotated[float, above(0)] = 1.0
    gap_stages: Annotated[int, at_least(1, most=1000)] = 8
    gap_limit: Annotated[float, Rule("in (0, 0.99999]", lambda limit: 0 < limit <= 0.99999)] = 0.999

    def __post_init__(self) -> None:
        check_ranges("curriculum", self)
        allowed = f">= curriculum.s0 = {self.s0} and <= {_MOST_INTERVALS}"
        require(self.s0 <= self.s1 <= _MOST_INTERVALS, "curriculum.s1", self.s1, allowed)

    @property
    def has_teacher(self) -> bool:
        """False if the target is the image itself, as in diffusion training."""
        return self.schedule != "diffusion"

    @property
    def has_grid(self) -> bool:
        """True if levels are drawn from a `Grid`; else from a `Gap`."""
        return self.schedule in SCHEDULES


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The distance between neighbouring levels, and its weight.

    Attributes:
        distance: "pseudo_huber" is the recipe's; "l2" (squared) and "l1" are there for comparison, and
            "pseudo_huber_elementwise" shows a fault.
        huber_factor: the Pseudo-Huber constant is c = `huber_factor` * sqrt(D), D the elements of an image.
        weighting: the weight of an interval (`loss_weight`); "inverse_gap" is the recipe's, and the others depend only
            on the student's level.

    Sources:
        iCT sec. 3.3: distance, huber_factor
        iCT sec. 3.1: weighting
    """

    distance: Annotated[str, one_of(DISTANCES)] = "pseudo_huber"
    huber_factor: Annotated[float, above(0)] = 0.00054
    weighting: Annotated[str, one_of(WEIGHTINGS)] = "inverse_gap"

    def __post_init__(self) -> None:
        check_ranges("loss", self)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teacher that the student is compared with: the student itself, unless these settings change it.

    Attributes:
        decay: mu, if the teacher's weights are a moving average of the student's; 0 gives it the student's own.
        schedule: "constant" keeps mu = `decay`; "adaptive" brings it nearer to 1 as levels are added, as original
            consistency training does (`adaptive_decay` with mu0 = `decay`, > 0).
        share_dropout: give student and teacher the same dropout masks.

    Sources:
        iCT sec. 3.2: decay, schedule
        iCT sec. 3.1: share_dropout
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
        """True if the teacher has weights of its own."""
        return self.decay > 0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation, and what a run logs and keeps.

    Attributes:
        seed: all randomness of a run is a function of the seed and the step. Torch draws the initial weights by the
            lower 32 bits alone.
        total_steps: K, the number of training steps, over which the curriculum is spread (but see `curriculum.steps`).
        batch_size: images a step, over all devices and processes.
        micro_batch: images that a device computes at a time, a divisor of `batch_size`; 0 takes all of its share. The
            gradients of the parts are added up, so that the result is the same but for rounding.
        precision: what the network computes in; its weights are float32 in any case. "float32" is exactly that on every
            device; "tf32" lets tensor cores, where there are any, round the factors of products and convolutions;
            "fp16" is for GPUs without "bf16", and scales the loss. With "bf16" and "fp16", norms, embeddings, the last
            layer, the affine part and the distance stay float32; for stages with many levels, see `late_above`.
        late_above: in stages with more levels than this, the network computes in `late_precision`; 0 keeps `precision`
            throughout. The difference of student and teacher shrinks like 1 / N, until the rounding of "bf16" hides it
            (docs/performance.md).
        late_precision: what the network computes in then. Samples are always drawn in `precision`.
        compile: compile the network with torch, which takes a minute or two; JAX always compiles. Cannot be combined
            with `shard_weights`.
        shard_weights: divide the weights, their average and the optimiser's moments among the devices, instead of
            giving each a copy.
        learning_rate: the learning rate, the same in every step unless `warmup_steps` or `rate_decay` change it.
        warmup_steps: the number of steps in which the rate first rises from 0 in proportion (Goyal et al. 2017).
        rate_decay: how the rate falls (`learning_rate_factor`): "linear" or "cosine" (Loshchilov & Hutter 2017), to 0
            after `total_steps`, which moves if a run is made longer; "inverse_sqrt" like one over the root of the steps
            done (EDM2).
        rate_decay_from: the number of steps after which the rate falls, >= `warmup_steps`; 0 for `warmup_steps`. With
            "inverse_sqrt", it is EDM2's t_ref.
        optimizer: "radam" (Liu et al. 2020) is the recipe's; "adam" (Kingma & Ba 2015); "adamw" is Adam with
            `weight_decay` (Loshchilov & Hutter 2019).
        betas: the decays of the optimiser's two moments.
        weight_decay: each step first multiplies all weights by 1 - rate * `weight_decay`, apart from the gradient
            (decoupled, as torch's AdamW and its RAdam with `decoupled_weight_decay`); > 0 with "adamw", 0 with "adam".
        clip_norm: the norm of all gradients together that a larger one is scaled down to (Pascanu et al. 2013; torch's
            `clip_grad_norm_`). The log has the norm before that.
        ema_decay: the decay of the average of the weights that samples are made from; the teacher's is `teacher.decay`.
        ema_sigma_rel: lengths of further averages, each a share of the steps so far (its standard deviation):
            `--weights 0.05` takes that of 0.05, and `ict ema` makes other lengths of two. They count from the run's
            first step, so that the initial weights have no part in them (docs/checkpoints.md).
        on_nonfinite: what happens where a loss or the gradient is NaN or infinite: "stop" ends the run; "skip" leaves
            the weights as they are and counts the step.
        log_every: steps from one line of the log to the next.
        sample_every: steps from one picture of samples to the next; the last step always leaves one.
        checkpoint_every: steps from one checkpoint to the next; the last step always leaves one.
        keep_checkpoints: how many of the newest checkpoints are kept.
        keep_every: keep, beside the newest checkpoints, each whose step is a multiple of this.
        tensorboard: write scalars and sample pictures for TensorBoard, too.
        wandb: log scalars and sample pictures to Weights & Biases, too.
        label_dropout: the probability with which an image is trained on without its class, for guidance at sampling
            (docs/sampling.md); only for a network with classes.

    Sources:
        iCT app.: total_steps, batch_size, learning_rate, betas, ema_decay
        iCT app., not confirmed: precision
        Liu et al. 2020: optimizer
        Goyal et al. 2017: warmup_steps
        Karras et al. 2024 (EDM2): rate_decay, rate_decay_from, ema_sigma_rel
        Loshchilov & Hutter 2019: weight_decay
        Pascanu et al. 2013: clip_norm
        EDM: label_dropout
    """

    seed: Annotated[int, Rule("in [0, 2^63)", lambda seed: 0 <= seed < 2**63)] = 0
    total_steps: Annotated[int, at_least(1, most=_MOST_STEPS)] = 400_000
    batch_size: Annotated[int, at_least(1, most=_MOST_BATCH)] = 1024
    micro_batch: int = 0
    precision: Annotated[str, one_of(("float32", "tf32", "bf16", "fp16"))] = "float32"
    late_above: Annotated[int, at_least(0, zero="never")] = 0
    late_precision: Annotated[str, one_of(("float32", "tf32"))] = "tf32"
    compile: bool = False
    shard_weights: bool = False
    learning_rate: Annotated[float, above(0)] = 1e-4
    warmup_steps: Annotated[int, at_least(0, zero="none", most=_MOST_STEPS)] = 0
    rate_decay: Annotated[str, one_of(DECAYS)] = "none"
    rate_decay_from: Annotated[int, at_least(0, zero="the end of the warm-up", most=_MOST_STEPS)] = 0
    optimizer: Annotated[str, one_of(("radam", "adam", "adamw"))] = "radam"
    betas: Annotated[tuple[float, ...], BETAS] = (0.9, 0.999)
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    clip_norm: Annotated[float, NOT_NEGATIVE] = 0.0
    ema_decay: Annotated[float, below_one()] = 0.99993
    ema_sigma_rel: Annotated[tuple[float, ...], AVERAGES] = ()
    on_nonfinite: Annotated[str, one_of(("stop", "skip"))] = "stop"
    log_every: Annotated[int, at_least(1)] = 50
    sample_every: Annotated[int, at_least(0, zero="never")] = 1000
    checkpoint_every: Annotated[int, at_least(0, zero="never")] = 1000
    keep_checkpoints: Annotated[int, at_least(0, zero="all")] = 2
    keep_every: Annotated[int, at_least(0, zero="none")] = 0
    tensorboard: bool = False
    wandb: bool = False
    label_dropout: Annotated[float, below_one()] = 0.0

    def __post_init__(self) -> None:
        check_ranges("train", self)
        ok = self.micro_batch == 0 or (self.micro_batch > 0 and self.batch_size % self.micro_batch == 0)
        allowed = f"a divisor of train.batch_size = {self.batch_size} (or 0: all)"
        require(ok, "train.micro_batch", self.micro_batch, allowed)
        allowed = "false with train.shard_weights = true"
        require(not (self.compile and self.shard_weights), "train.compile", self.compile, allowed)
        self._check_optimizer()

    @property
    def average_exponents(self) -> dict[str, float]:
        """The exponent gamma of each average of `ema_sigma_rel`, by the average's name: its length in digits."""
        return {str(length): power_exponent(length) for length in self.ema_sigma_rel}

    def _check_optimizer(self) -> None:
        """Raise ConfigError where a setting of the optimiser or the rate would change nothing, or not what it says."""
        kind, decay, first = self.optimizer, self.rate_decay, self.rate_decay_from
        if kind != "radam":
            ok, allowed = (
                (self.weight_decay > 0) == (kind == "adamw"),
                "> 0" if kind == "adamw" else '0 ("adamw" has it)',
            )
            require(ok, "train.weight_decay", self.weight_decay, f'{allowed} with train.optimizer = "{kind}"')
        require(first == 0 or decay != "none", "train.rate_decay_from", first, '0 with train.rate_decay = "none"')
        allowed = f">= train.warmup_steps = {self.warmup_steps} (or 0: the end of the warm-up)"
        require(first == 0 or first >= self.warmup_steps, "train.rate_decay_from", first, allowed)
        if decay == "inverse_sqrt":
            allowed = '> 0 with train.rate_decay = "inverse_sqrt", unless train.warmup_steps is'
            require(max(first, self.warmup_steps) > 0, "train.rate_decay_from", first, allowed)


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The defaults of sampling.

    Attributes:
        second_sigma: the second level of two-step sampling, in [`noise.sigma_min`, `noise.sigma_max`); it is tuned for
            each data set.

    Sources:
        iCT sec. 4: second_sigma
    """

    second_sigma: Annotated[float, above(0)] = 0.821

    def __post_init__(self) -> None:
        check_ranges("sample", self)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measuring while training: the pixels of samples of the averaged weights against the data.

    The samples are of one step, or of 18 of a diffusion model.

    Attributes:
        every: steps from one measurement to the next; if there are any, one follows the last step.
        num: how many samples are measured; 0 takes 1,000, or more where the metric needs more.
        metric: "pixel-fd" (Frechet distance), "kid" (kernel distance) or "sw" (sliced Wasserstein distance). The
            checkpoint with the smallest value is kept.
    """

    every: Annotated[int, at_least(0, zero="never")] = 0
    num: Annotated[int, at_least(2, zero="as many as are needed")] = 0
    metric: Annotated[str, one_of(("pixel-fd", "kid", "sw"))] = "pixel-fd"

    def __post_init__(self) -> None:
        check_ranges("eval", self)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a whole run. Each section checks itself; this checks what they must agree on."""

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
        levels = len(self.network.channel_mult)
        allowed = f"a list of {_MOST_LEVELS} integers at most"
        require(levels <= _MOST_LEVELS, "network.channel_mult", self.network.channel_mult, allowed)
        factor = 2 ** (levels - 1)
        for name, pixels in (("height", height), ("width", width)):
            allowed = f"of a {name} that divides by {factor}, since network.channel_mult has {levels} levels"
            require(pixels % factor == 0, "data.shape", self.data.shape, allowed)
        alone = not self.curriculum.has_teacher
        allowed = '0 with curriculum.schedule = "diffusion", which has no teacher'
        require(not (alone and self.teacher.averaged), "teacher.decay", self.teacher.decay, allowed)
        law, schedule = self.noise.law, self.curriculum.schedule
        allowed = f'"lognormal" with curriculum.schedule = "{schedule}", which has no grid of levels'
        require(self.curriculum.has_grid or law == "lognormal", "noise.law", law, allowed)
        lo, hi = self.noise.sigma_min, self.noise.sigma_max
        require(
            lo <= self.sample.second_sigma < hi, "sample.second_sigma", self.sample.second_sigma, f"in [{lo:g}, {hi:g})"
        )

    def in_stage(self, n: int) -> Config:
        """The settings of a stage with n levels: `train.precision` is what its steps compute in."""
        train = self.train
        if not train.late_above or n <= train.late_above:
            return self
        return replace(self, train=replace(train, precision=train.late_precision, late_above=0))

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
