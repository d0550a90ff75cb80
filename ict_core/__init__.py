"""The mathematics of improved consistency training, for any array library.

schedule           karras_sigmas
curriculum         discretization_steps, stages
noise_law          interval_probabilities
grid               make_grid: one stage's levels, law and weights, and the draw from them
parameterization   scalings, consistency_output
loss               pseudo_huber, huber_constant, loss_weight, consistency_loss; squared_l2, l1 to compare with
objective          batch_loss: from a network and a Batch to the loss; consistency_function, distance_of
teacher            teacher_of: the student as its own teacher; update_average; adaptive_decay, to compare with
ema                power_exponent, power_decay, power_profile, mixing_weights: averages of a length relative to the run
loss_scale         LossScale, next_loss_scale: for float16
learning_rate      learning_rate_factor: warm-up and decay, to compare with
threefry           normal_noise, dropout_bytes: a function of keys, the same in every library; key_words, threefry
gap                Gap, gap_share, gap_stages, teacher_level: the gap rule of consistency tuning, in place of a grid
sampling           multistep_sample
ode                heun_sample, heun_sigmas: of diffusion models, in many steps
guidance           guided: classifier-free guidance; NO_CLASS, the label of an image without a class
editing            linear_edit, inpaint, colorize, super_resolve, denoise, stroke, interpolate_noise; transforms
config             the settings of a run, with their ranges; NoiseConfig makes grid, f and samples that fit each other
settings           load_config, load_preset, preset_names: settings from TOML, and the presets
"""

from ict_core.config import (
    ADMConfig,
    Config,
    ConfigError,
    CurriculumConfig,
    DataConfig,
    EvalConfig,
    LossConfig,
    NCSNppConfig,
    NoiseConfig,
    SampleConfig,
    TeacherConfig,
    TrainConfig,
)
from ict_core.curriculum import Stage, discretization_steps, stages
from ict_core.editing import (
    colorize,
    denoise,
    inpaint,
    interpolate_noise,
    linear_edit,
    mix_colors,
    mix_patches,
    patch_means,
    repeat_pixels,
    stroke,
    super_resolve,
    to_grey,
)
from ict_core.ema import mixing_weights, power_decay, power_exponent, power_profile
from ict_core.gap import Gap, gap_share, gap_stages, teacher_level
from ict_core.grid import Grid, Levels, make_grid
from ict_core.guidance import NO_CLASS, guided
from ict_core.learning_rate import learning_rate_factor
from ict_core.loss import (
    ConsistencyLoss,
    consistency_loss,
    huber_constant,
    l1,
    loss_weight,
    pseudo_huber,
    pseudo_huber_elementwise,
    squared_l2,
)
from ict_core.loss_scale import LossScale, next_loss_scale
from ict_core.noise_law import interval_probabilities
from ict_core.objective import Batch, MaskedNetwork, batch_loss, consistency_function, distance_of
from ict_core.ode import heun_sample, heun_sigmas
from ict_core.parameterization import Scalings, consistency_output, scalings
from ict_core.sampling import multistep_sample
from ict_core.schedule import karras_sigmas
from ict_core.settings import load_config, load_preset, preset_names
from ict_core.teacher import adaptive_decay, teacher_of, update_average
from ict_core.threefry import dropout_bytes, key_words, normal_noise, threefry

__version__ = "0.2.0"

__all__ = [
    "NO_CLASS",
    "ADMConfig",
    "Batch",
    "Config",
    "ConfigError",
    "ConsistencyLoss",
    "CurriculumConfig",
    "DataConfig",
    "EvalConfig",
    "Gap",
    "Grid",
    "Levels",
    "LossConfig",
    "LossScale",
    "MaskedNetwork",
    "NCSNppConfig",
    "NoiseConfig",
    "SampleConfig",
    "Scalings",
    "Stage",
    "TeacherConfig",
    "TrainConfig",
    "adaptive_decay",
    "batch_loss",
    "colorize",
    "consistency_function",
    "consistency_loss",
    "consistency_output",
    "denoise",
    "discretization_steps",
    "distance_of",
    "dropout_bytes",
    "gap_share",
    "gap_stages",
    "guided",
    "heun_sample",
    "heun_sigmas",
    "huber_constant",
    "inpaint",
    "interpolate_noise",
    "interval_probabilities",
    "karras_sigmas",
    "key_words",
    "l1",
    "learning_rate_factor",
    "linear_edit",
    "load_config",
    "load_preset",
    "loss_weight",
    "make_grid",
    "mix_colors",
    "mix_patches",
    "mixing_weights",
    "multistep_sample",
    "next_loss_scale",
    "normal_noise",
    "patch_means",
    "power_decay",
    "power_exponent",
    "power_profile",
    "preset_names",
    "pseudo_huber",
    "pseudo_huber_elementwise",
    "repeat_pixels",
    "scalings",
    "squared_l2",
    "stages",
    "stroke",
    "super_resolve",
    "teacher_level",
    "teacher_of",
    "threefry",
    "to_grey",
    "update_average",
]
