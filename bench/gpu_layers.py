"""What compiling pays, layer by layer: a residual block of the paper's network on a GPU in several ways."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gpu import Report


def layers(report: Report) -> None:
    """Milliseconds of a block, forward and backward."""
    import torch
    from ict_backends.ncsnpp_spec import BlockSpec
    from ict_backends.torch import kernels
    from ict_backends.torch import layers as ours

    where = torch.device(report.device)
    b, c, h = (2, 16, 8) if report.rehearse else (128, 256, 32)

    def images() -> Any:
        x = torch.randn(b, c, h, h, device=where, dtype=torch.bfloat16)
        return x.contiguous(memory_format=torch.channels_last).requires_grad_()

    spec = BlockSpec(c, c, h)
    block = ours.ResidualBlock(spec, 512, taps=(1, 3, 3, 1), dropout=0.3, skip_rescale=True).to(where)
    block.to(memory_format=torch.channels_last)
    embedding = torch.randn(b, 512, device=where)
    mask = (torch.rand(b, h, h, c, device=where) > 0.3).permute(0, 3, 1, 2)

    def run_block(module: Any) -> Callable[[], None]:
        x = images()

        def run() -> None:
            module(x, embedding, mask).backward(x.detach())

        return run

    usable = kernels.usable
    for name, whether in (("block, torch's operations", lambda tensor: False), ("block", usable)):
        kernels.usable = whether
        report.attempt(name, lambda: timed(report, run_block(block)))
    kernels.usable = usable
    whole = torch.compile(block, dynamic=False)
    report.attempt("block, compiled", lambda: timed(report, run_block(whole)))


def timed(report: Report, run: Callable[[], None]) -> dict[str, float]:
    """Seconds of the first call, and milliseconds of a later one."""
    import torch

    def wait() -> None:
        if report.device == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    run()
    wait()
    first = time.perf_counter() - start
    run()
    wait()
    times, start = (2 if report.rehearse else 30), time.perf_counter()
    for _ in range(times):
        run()
    wait()
    return {"first_call": first, "ms": 1000 * (time.perf_counter() - start) / times}
