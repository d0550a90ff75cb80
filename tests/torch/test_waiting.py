"""A training step in torch asks no tensor for its value: on a GPU, that would wait for all that was started before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ict_backends.data.dataset import Dataset
from ict_backends.torch.batch import make_batch, to_device
from ict_backends.torch.parallel import Processes
from ict_backends.torch.state import TrainState, init_state
from ict_backends.torch.step import train_step
from ict_backends.training.step_plan import plan_step
from ict_core import Config

# What bool(), float(), int(), .item() and .tolist() of a tensor come down to, and what looks for its nonzero elements.
ASKING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique")


class Asked(TorchDispatchMode):
    """Collects the names of operations that need a value on the host, but for those on `known` tensors."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known, self.names = {t.data_ptr() for t in known}, []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.partition(".")[0]
        by_mask = name.startswith("index") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in (args[1] if isinstance(args[1], list) else ())
        )
        if by_mask or (name in ASKING and args[0].data_ptr() not in self.known):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def host_counts(state: TrainState) -> list[Tensor]:
    """RAdam's counts of steps, which torch keeps on the host whatever the weights are on."""
    return [moments["step"] for moments in state.optimizer.state.values()]


def step(config: Config, state: TrainState, images: Tensor) -> None:
    """One whole step, from its plan on."""
    plan = plan_step(config, state.step, len(images))
    draws = to_device(plan, images.device).parts(2)
    batches = (make_batch(config, draw, images, None) for draw in draws)
    train_step(state, config, batches, parts=2, teacher_decay=plan.teacher_decay)


# Attributes that copy a tensor to the host.
COPIES = ("cpu", "numpy", "tolist")


def watch(monkeypatch: pytest.MonkeyPatch, function: Callable[[], object], known: list[Tensor]) -> list[str]:
    """What a function asks of tensors, copies to the host included."""
    with Asked(known) as asked:
        for name in COPIES:
            original = getattr(Tensor, name)

            def copied(tensor: Tensor, *given: Any, _name: str = name, _call: Any = original, **named: Any) -> Any:
                asked.names.append(_name)
                return _call(tensor, *given, **named)

            monkeypatch.setattr(Tensor, name, copied)
        function()
        monkeypatch.undo()
    return asked.names


@pytest.mark.parametrize(
    "sections",
    [{}, {"network": {"dropout": 0.0, "fir_kernel": []}}, {"teacher": {"decay": 0.9, "share_dropout": False}}],
    ids=["recipe", "no filters", "averaged teacher"],
)
def test_a_step_asks_for_no_value(
    tiny_config: Callable[..., Config], tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    config = tiny_config(**sections)
    state, images = init_state(config, Processes(torch.device("cpu"))), torch.from_numpy(tiny_data.images)
    for _ in range(7):  # the sixth of RAdam's steps is the first that is rectified
        assert watch(monkeypatch, lambda: step(config, state, images), host_counts(state)) == []


ASKS: dict[str, Callable[[Tensor], object]] = {
    "float": float,
    "bool": bool,
    "item": lambda t: t.item(),
    "tolist": lambda t: t.tolist(),
    "cpu": lambda t: t.cpu(),
    "numpy": lambda t: t.numpy(),
    "nonzero": lambda t: t[None].nonzero(),
    "mask": lambda t: torch.ones(1)[t[None] > 0],
}


@pytest.mark.parametrize("name", ASKS)
def test_the_watch_sees_what_asks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert watch(monkeypatch, lambda: ASKS[name](torch.ones(())), []) != []


def test_a_step_that_may_be_skipped_asks_once(
    tiny_config: Callable[..., Config], tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is to be: there the host has to know."""
    config = tiny_config(train={"on_nonfinite": "skip"})
    state, images = init_state(config, Processes(torch.device("cpu"))), torch.from_numpy(tiny_data.images)
    assert watch(monkeypatch, lambda: step(config, state, images), host_counts(state)) == ["_local_scalar_dense"]
