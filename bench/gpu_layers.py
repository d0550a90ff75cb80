"""What compiling pays, layer by layer: a residual block of the paper's network on a GPU in several ways."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gpu import Report


def layers(report: Report) -> None:
    """Milliseconds of a block, forward with gradient kept and backward, and of its normalisation alone."""
    import torch
    from ict_backends.ncsnpp_spec import BlockSpec
    from ict_backends.torch import device
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
    groups = min(32, c // 4)

    def run_block(module: Any) -> Callable[[], None]:
        x = images()

        def run() -> None:
            module(x, embedding, mask).backward(x.detach())

        return run

    weight, bias = (torch.nn.Parameter(torch.randn(c, device=where)) for _ in range(2))

    def torchs(x: Any) -> Any:
        h = torch.nn.functional.group_norm(x.float(), groups, weight, bias, 1e-6)
        return torch.nn.functional.silu(h).bfloat16().contiguous(memory_format=torch.channels_last)

    def written_out(x: Any) -> Any:
        return torch.nn.functional.silu(ours.group_norm(x, weight, bias, groups, 1e-6)).bfloat16()

    def by_channel(x: Any) -> Any:
        wide = x.permute(0, 2, 3, 1).float()
        sums, squares = wide.mean((1, 2)), (wide * wide).mean((1, 2))
        mean, square = (s.view(b, groups, -1).mean(2).repeat_interleave(c // groups, 1) for s in (sums, squares))
        rate = torch.rsqrt((square - mean * mean).clamp(min=0) + 1e-6)
        scaled = wide * (rate * weight)[:, None, None] + (bias - mean * rate * weight)[:, None, None]
        return torch.nn.functional.silu(scaled).bfloat16().permute(0, 3, 1, 2)

    def run_norm(function: Callable[[Any], Any]) -> Callable[[], None]:
        x = images()

        def run() -> None:
            function(x).backward(x.detach())

        return run

    plain = device.compiles_for
    for name, whether in (("block, eager", lambda tensor: False), ("block, layers compiled", plain)):
        device.compiles_for = ours.compiles_for = whether
        report.attempt(name, lambda: timed(report, run_block(block)))
    device.compiles_for = ours.compiles_for = plain
    whole = torch.compile(block, dynamic=False)
    report.attempt("block, compiled", lambda: timed(report, run_block(whole)))
    for name, function in (("torch's", torchs), ("written out", written_out), ("by channel", by_channel)):
        compiled = torch.compile(function, dynamic=False)
        report.attempt(f"norm, {name}", lambda f=compiled: timed(report, run_norm(f)))
    report.attempt(
        "norm, written out, any shape", lambda: timed(report, run_norm(torch.compile(written_out, dynamic=True)))
    )


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
