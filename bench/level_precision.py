"""How far a step's gradient is from float64's in each precision, by the number of levels, with a run's trained weights.

    python bench/level_precision.py RUN [--levels 21,161,641,1281] [--batches 4]

The error is that of the whole gradient of some batches, ||g - g64|| / ||g64||, with the projection of g on g64 and the
loss, both in units of float64's. Beside the precisions of `train.precision`, it tries ways to keep what bf16 loses:
both passes as one batch, stochastic rounding (by the same random numbers in both passes), and the last level of the
network in float32. TF32 is imitated: the factors of all products and convolutions are rounded to 10 bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ict_backends.data.dataset import load_data_of
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir
from ict_backends.torch.batch import make_batch, to_device
from ict_backends.torch.networks import UNet, in_precision, make_network
from ict_backends.torch.step import batch_loss
from ict_backends.torch.weights import load_arrays
from ict_backends.training.step_plan import plan_step
from ict_core import Batch, Config, objective
from ict_core.settings import replace

CPU = torch.device("cpu")
aten = torch.ops.aten
_PRODUCTS = (aten.convolution.default, aten.convolution_backward.default, aten.mm.default, aten.bmm.default)


class AsTF32(TorchDispatchMode):
    """Round the factors of products and convolutions, of their gradients too, to TF32's 10 bits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (*_PRODUCTS, aten.addmm.default):
            args = [_to_ten_bits(a) if isinstance(a, Tensor) and a.dim() > 1 else a for a in args]
        return func(*args, **(kwargs or {}))


def _to_ten_bits(a: Tensor) -> Tensor:
    """float32 rounded to the nearest, ties to even, of the numbers with 10 bits after the leading one."""
    words = a.contiguous().view(torch.int32)
    return ((words + 0xFFF + ((words >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class StochasticRounding(TorchDispatchMode):
    """Round to bfloat16 up or down at random, without bias, what convolutions and casts return."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16 and args[0].dtype is torch.float32:
            return self._rounded(args[0])
        if func is aten.convolution.default and args[0].dtype is torch.bfloat16:
            return self._rounded(func(*(a.float() if isinstance(a, Tensor) else a for a in args)))
        return func(*args, **kwargs)

    def _rounded(self, a: Tensor) -> Tensor:
        words = a.view(torch.int32)
        noise = torch.randint(0, 2**16, a.shape, generator=self.generator, dtype=torch.int32)
        return ((words + noise.as_strided(a.shape, a.stride())) & ~0xFFFF).view(torch.float32).bfloat16()


Loss = Callable[[UNet, Config, Batch], Tensor]


def plain(network: UNet, config: Config, batch: Batch) -> Tensor:
    """As in training: the student's pass, then the teacher's."""
    return batch_loss(network, config, batch).mean


def together(network: UNet, config: Config, batch: Batch) -> Tensor:
    """One pass over a batch of both levels."""
    f = in_precision(network, config)
    x_hi, x_lo = (batch.x + s[:, None, None, None] * batch.z for s in (batch.sigma_hi, batch.sigma_lo))
    labels = None if batch.labels is None else batch.labels.repeat(2)
    masks = None if batch.masks is None else [m.repeat(2, 1, 1, 1) for m in batch.masks]
    both = objective.consistency_function(f, config.noise, labels, masks)
    y_hi, y_lo = both(torch.cat([x_hi, x_lo]), torch.cat([batch.sigma_hi, batch.sigma_lo])).chunk(2)
    return (batch.weight * objective.distance_of(config)(y_hi, y_lo.detach())).mean()


def randomly_rounded(network: UNet, config: Config, batch: Batch) -> Tensor:
    """With stochastic rounding; both passes draw the same random numbers."""

    def network_(*arguments: Any) -> Tensor:
        with StochasticRounding():
            result: Tensor = in_precision(network, config)(*arguments)
        return result

    return objective.batch_loss(network_, config, batch, without_gradient=torch.no_grad()).mean


def last_level_wide(network: UNet, config: Config, batch: Batch) -> Tensor:
    """With the blocks of the last level of the network, at full resolution, in float32."""
    first = network.up[-1].blocks[0]

    def widen(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].float(), *args[1:])

    handle = first.register_forward_pre_hook(widen)
    try:
        return plain(network, config, batch)
    finally:
        handle.remove()


WAYS: dict[str, tuple[str, Loss, Callable[[], Any]]] = {
    "float32": ("float32", plain, nullcontext),
    "tf32": ("float32", plain, AsTF32),
    "fp16": ("fp16", plain, nullcontext),
    "bf16": ("bf16", plain, nullcontext),
    "bf16, both passes as one batch": ("bf16", together, nullcontext),
    "bf16, stochastic rounding": ("bf16", randomly_rounded, nullcontext),
    "bf16, last level in float32": ("bf16", last_level_wide, nullcontext),
}


def gradient(
    loss: Loss, mode: Callable[[], Any], network: UNet, config: Config, batches: Iterable[Batch]
) -> tuple[Tensor, float]:
    """The gradient of the mean of the batches' losses as a vector, [n] float64, and that mean."""
    network.zero_grad()
    total, count = 0.0, 0
    for batch in batches:
        with mode(), sdpa_kernel(SDPBackend.MATH):  # attention as products, which `AsTF32` knows
            value = loss(network, config, batch)
            value.backward()
        total, count = total + value.item(), count + 1
    parts = [p.grad.double().flatten() for p in network.parameters() if p.grad is not None]
    return torch.cat(parts) / count, total / count


def batches_of(config: Config, images: Tensor, labels: Tensor | None, count: int) -> list[Batch]:
    """The first batches of a run, at any of its levels."""
    return [make_batch(config, to_device(plan_step(config, i, len(images)), CPU), images, labels) for i in range(count)]


def as_float64(batch: Batch) -> Batch:
    """The same numbers in float64."""
    return batch._replace(**{name: getattr(batch, name).double() for name in batch._fields[:5]})


def measure(run: Path, levels: Sequence[int], count: int) -> Iterator[tuple[int, str, float, float, float]]:
    """Yield levels, way, error, projection and loss."""
    config = replace(RunDir(run).load_config(), train={"compile": False})
    dataset = load_data_of(config.data)
    images = torch.from_numpy(dataset.images)
    labels = torch.from_numpy(dataset.labels) if config.network.num_classes and dataset.labels is not None else None
    network = make_network(config)
    load_arrays(network, load_checkpoint(RunDir(run).latest_checkpoint()).params, "weights")
    for n in levels:
        fixed = replace(config, curriculum={"schedule": "fixed", "s1": n - 1})
        batches = batches_of(fixed, images, labels, count)
        wide = make_network(config)
        load_arrays(wide, load_checkpoint(RunDir(run).latest_checkpoint()).params, "weights")
        exact, true = gradient(plain, nullcontext, wide.double(), fixed, [as_float64(b) for b in batches])
        for way, (precision, loss, mode) in WAYS.items():
            found, value = gradient(loss, mode, network, replace(fixed, train={"precision": precision}), batches)
            off = float((found - exact).norm() / exact.norm())
            yield n, way, off, float(found @ exact / (exact @ exact)), value / true


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--levels", default="21,161,641,1281")
    parser.add_argument("--batches", type=int, default=4)
    options = parser.parse_args()
    levels, rows = [int(n) for n in options.levels.split(",")], dict.fromkeys(WAYS, "")
    for _, way, off, projection, loss in measure(options.run, levels, options.batches):
        rows[way] += f" {off:.2g} ({projection:.2f}, {loss:.2f}) |"
    print("| error (projection, loss) |" + "".join(f" N = {n} |" for n in levels))
    print("|---|" + "---|" * len(levels))
    for way, row in rows.items():
        print(f"| {way} |{row}")


if __name__ == "__main__":
    main()
