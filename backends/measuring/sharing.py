"""An evaluation by several processes: each measures a stretch of the samples, and the first one joins the results."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np

from ict_backends.measuring.distances import Moments, joined_moments
from ict_backends.measuring.metrics import Gathered
from ict_backends.protocols import Processes

_MOMENTS = ("moments", "pixel_moments")


def stretch(num: int, rank: int, world: int) -> range:
    """The numbers of the samples 0..num-1 that a process draws: consecutive ones, and two at least or none."""
    shares = max(1, min(world, num // 2))
    return range(num * rank // shares, num * (rank + 1) // shares) if rank < shares else range(0)


def exchange(gathered: Gathered, processes: Processes) -> Gathered:
    """The input of the metrics from the samples of all processes, in their order; must be called by every process.

    Only the first process joins them: the others get their own back.
    """
    texts = processes.exchange(_encode(gathered))
    return gathered if processes.rank else join([_decode(text) for text in texts])


def join(parts: Sequence[Gathered]) -> Gathered:
    """The input of metrics from stretches of a set of images, in their order; some may be empty."""
    return Gathered(
        sum(part.num for part in parts),
        moments=_together([part.moments for part in parts]),
        features=_concatenated([part.features for part in parts]),
        probabilities=_concatenated([part.probabilities for part in parts]),
        pixel_moments=_together([part.pixel_moments for part in parts]),
        pixels=_concatenated([part.pixels for part in parts]),
    )


def _together(moments: Sequence[Moments | None]) -> Moments | None:
    known = [each for each in moments if each is not None]
    return joined_moments(known) if known else None


def _concatenated(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [array for array in arrays if array is not None]
    return np.concatenate(known) if known else None


def _encode(gathered: Gathered) -> str:
    """The members as the text of an .npz file; moments are arrays with their fields' names."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in gathered._asdict().items():
        fields = {f"{name}.{key}": each for key, each in value._asdict().items()} if name in _MOMENTS and value else {}
        arrays |= {key: np.asarray(each) for key, each in (fields or {name: value}).items() if each is not None}
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return base64.b64encode(stream.getvalue()).decode()


def _decode(text: str) -> Gathered:
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    moments, pixel_moments = (_read_moments(arrays, name) for name in _MOMENTS)
    plain = {name: arrays.get(name) for name in ("features", "probabilities", "pixels")}
    return Gathered(int(arrays["num"]), moments=moments, pixel_moments=pixel_moments, **plain)


def _read_moments(arrays: Mapping[str, np.ndarray], name: str) -> Moments | None:
    if f"{name}.num" not in arrays:
        return None
    return Moments(int(arrays[f"{name}.num"]), arrays[f"{name}.mean"], arrays[f"{name}.cov"])
