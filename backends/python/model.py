"""A trained model in Python: it draws, edits, shows and measures images, uint8 [n, h, w, c]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

from ict_backends import load_backend
from ict_backends.data.decode import describe_shape
from ict_backends.data.npz import to_nchw
from ict_backends.images import tile, to_uint8
from ict_backends.measuring.comparison import measure_model
from ict_backends.networks.families import count_parameters
from ict_backends.protocols import Model
from ict_backends.python.edit import Edits
from ict_backends.python.words import in_python_words
from ict_backends.runs.checkpoint import weights_name
from ict_backends.runs.folder import RunDir, class_counts, class_names, open_run, step_of
from ict_backends.sampling.batches import sample_images
from ict_backends.sampling.choices import (
    Labels,
    as_labels,
    check_at_least,
    check_guidance,
    check_seed,
    resolve_labels,
    resolve_sigmas,
    resolve_solver,
)
from ict_core import Config

# The name of each network family, and of each kind of weights, in words.
_FAMILIES = {"ncsnpp": "NCSN++", "adm": "ADM"}
_WEIGHTS = {"ema": "averaged weights", "raw": "weights without averaging", "best": "averaged weights, the best"}
# So many names of classes are shown.
_SHOWN = 10


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """A trained model. `load` and `train` return it.

    Images are uint8 [n, h, w, c], c = 1 (grey) or 3 (RGB). What is given may also be [n, h, w] for grey images, or
    [n, c, h, w]. Image i of a seed depends only on the seed and on i, and is the one that `ict sample` draws.

    Attributes:
        run: the run's folder, with the checkpoint that the weights are from.
        config: the run's settings.
        step: the training step that the weights are from.
        classes: the names of the classes, by number; None for an unconditional model, or where they are not known.
        backend: "torch" or "jax".
        weights: "ema", "raw", "best" or the length of an average, such as "0.05".
        device: the name of the device.
        low_level: the same model for float32 images [b, c, h, w] in [-1, 1]: its consistency function and its network.
    """

    run: RunDir
    config: Config
    step: int
    classes: list[str] | None
    backend: str
    weights: str
    device: str
    low_level: Model

    def __repr__(self) -> str:
        network, noise = self.config.network, self.config.noise
        shape, steps = self.config.data.shape, self.config.train.total_steps
        where = load_backend(self.backend).describe_device(self.device)
        kind = _WEIGHTS.get(self.weights, f"weights averaged over the length {self.weights}")
        return "\n".join(
            [
                f"{self.run.path}, step {self.step:,} of {steps:,}: {kind}, {where}",
                f"{_FAMILIES[network.family]} of {count_parameters(self.config):,} parameters, {network.channels} "
                f"channels times {', '.join(map(str, network.channel_mult))}",
                f"{describe_shape(shape)} images of {self._describe_data()}, {self._describe_classes()}, "
                f"noise levels {noise.sigma_min:g} to {noise.sigma_max:g}",
            ]
        )

    def _describe_data(self) -> str:
        source = self.config.data.source
        return "an array" if Path(source).name == self.run.images_file.name else source

    def _describe_classes(self) -> str:
        number = self.config.network.num_classes
        if not number:
            return "no classes"
        names = self.classes or []
        some = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        return f"{number} classes" + (f" ({some})" if names else "")

    @in_python_words
    def sample(
        self,
        num: int = 64,
        *,
        steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        labels: Labels | np.ndarray | None = None,
        seed: int = 0,
        clip_steps: bool = False,
        truncate: bool = False,
        guidance: float = 1.0,
        solver: str | None = None,
        batch_size: int = 256,
    ) -> np.ndarray:
        """Draw images 0..num-1 of a seed.

        Args:
            num: the number of images, >= 1.
            steps: sampling steps: 1, 2, or up to as many as `ict search-sigmas` has found levels for; by default 1.
            sigmas: falling noise levels, one a step, instead of `steps`.
            labels: classes that take turns, by number or name, such as 3, "leaves", "leaves,rock" or an array [num];
                "balanced" for all classes in turn (the default), "data" for the proportions of the training data, or
                "random". Only for a conditional model.
            seed: of the noise, >= 0.
            clip_steps: clip to [-1, 1] after each step, as released samplers do, and not only at the end.
            truncate: cut values off to 8 bits, as released samplers do, instead of rounding them.
            guidance: how strongly images are of their class: 1 as the model was trained, more for more, 0 for no
                class. Only for a conditional model, which should be trained with `train.label_dropout`.
            solver: "multistep", or "heun" for the ODE of a diffusion model, in 18 steps unless told otherwise; by
                default the one that the model was trained for.
            batch_size: images that are computed at a time, >= 1; fewer where so many do not fit into the memory.

        Returns:
            [num, h, w, c] uint8.

        Raises:
            UsageError: an argument is not allowed; the message says what is.
            OutOfMemoryError: the device cannot hold even one image.
        """
        check_at_least("num", num, 1)
        check_seed(seed)
        check_at_least("batch-size", batch_size, 1)
        solver = resolve_solver(self.config, solver, clip_steps=clip_steps)
        levels = resolve_sigmas(self.config, steps, sigmas, run=self.run, solver=solver)
        check_guidance(self.config, guidance)
        counts = class_counts(self.run, self.config)
        classes = resolve_labels(self.config, as_labels(labels), num, seed=seed, counts=counts, names=self.classes)
        drawn = sample_images(
            self.low_level,
            num,
            sigmas=levels,
            seed=seed,
            labels=classes,
            batch=batch_size,
            clip_steps=clip_steps,
            guidance=guidance,
            solver=solver,
        )
        return rearrange(to_uint8(drawn, truncate=truncate), "n c h w -> n h w c")

    @in_python_words
    def show(self, images: np.ndarray, *, columns: int | None = None) -> Image.Image:
        """Arrange images in one picture, which a notebook displays; small ones are enlarged.

        Args:
            images: uint8, as the class says, of any size.
            columns: images in a row; by default about as many as there are rows.

        Raises:
            DataError: these are no images.
            UsageError: `columns` is less than 1.
        """
        check_at_least("columns", 1 if columns is None else columns, 1)
        grid = tile(to_nchw("images", np.asarray(images)), columns=columns)
        return Image.fromarray(grid[:, :, 0] if grid.shape[2] == 1 else grid)

    @property
    def edit(self) -> Edits:
        """The edits: `model.edit.inpaint(images, mask)`, and so on."""
        return Edits(self.low_level, self.run, self.classes)

    @in_python_words
    def evaluate(
        self,
        data: str | Path | np.ndarray | None = None,
        *,
        metrics: str | Sequence[str] | None = None,
        features: str | Path | None = None,
        trust_features: bool = False,
        num: int | None = None,
        resize: bool = False,
        halves: bool = True,
        labels: Labels | np.ndarray | None = None,
        steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        clip_steps: bool = False,
        truncate: bool = False,
        guidance: float = 1.0,
        solver: str | None = None,
        seed: int = 0,
        batch_size: int = 256,
    ) -> dict[str, Any]:
        """Measure how far samples are from data, as `ict eval` does.

        Args:
            data: a source as for `ict eval --data`, or images as the class says; by default the training data.
            metrics: some of fid, kid, is, pr, pixel-fd, sw; by default pixel-fd, or fid, kid and pr with `features`.
            features: the network for fid, kid, is and pr: a file, or "inception-2015-12-05", which is downloaded once.
            trust_features: run a `features` file that is not the known network: such files are programs.
            num: the number of samples; by default 2,000, or more if a metric needs them.
            resize: fit data of another size or other colours to the model's.
            halves: with pixel-fd, also say what a perfect model would show: minutes for thousands of pixels.
            labels: as for `sample`; by default in the proportions of the data.
            steps, sigmas, clip_steps, truncate, guidance, solver, seed, batch_size: as for `sample`.

        Returns:
            The figures by name, such as "pixel-fd", and what they are of ("num", "sigmas", ...): what
            `ict eval --json` writes.

        Raises:
            DataError, UsageError: the data, the metrics and the model do not fit each other.
        """
        check_at_least("num", 2 if num is None else num, 2)
        check_seed(seed)
        check_at_least("batch-size", batch_size, 1)
        given = to_nchw("data", data) if isinstance(data, np.ndarray) else None if data is None else str(data)
        comparison = measure_model(
            lambda: self.low_level,
            self.run,
            self.config,
            data=given,
            metrics=metrics if metrics is None or isinstance(metrics, str) else ",".join(metrics),
            features=features,
            trust_features=trust_features,
            num=num,
            resize=resize,
            labels=as_labels(labels),
            steps=steps,
            sigmas=sigmas,
            clip_steps=clip_steps,
            truncate=truncate,
            guidance=guidance,
            solver=solver,
            seed=seed,
            batch_size=batch_size,
            device=self.device,
        )
        return comparison.record(comparison.perfect() if halves else None)


@in_python_words
def load(
    run: str | Path, *, backend: str = "torch", weights: str | float = "ema", device: str = "auto"
) -> TrainedModel:
    """Load the model of a run.

    Args:
        run: the run's folder, RUN@STEP for one of its checkpoints, or a checkpoint's folder.
        backend: the library to compute with, "torch" or "jax"; a run of one can be loaded in the other.
        weights: "ema" for the averaged ones, "raw" for those without averaging, "best" for the averaged ones of the
            best evaluation, or the length of an average that `train.ema_sigma_rel` keeps, such as "0.05" or 0.05.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...

    Raises:
        CheckpointError: there is no such run, or it is damaged.
        UsageError: the backend or the device is not available, or there are no such weights.
    """
    weights = weights_name(str(weights))
    place = open_run(Path(run).expanduser())
    config = place.load_config()
    # Read once: a run that is training has another newest checkpoint a moment later.
    checkpoint = place.checkpoint_of(weights)
    engine = load_backend(backend)
    low_level = engine.load_model(checkpoint, weights=weights, device=device)
    chosen = RunDir(place.path, checkpoint)
    return TrainedModel(
        chosen, config, step_of(checkpoint), class_names(place, config), backend, weights, device, low_level
    )
