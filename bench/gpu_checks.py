"""The checks that bench/gpu.py makes before it measures: a GPU computes what the CPU computes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gpu import CARRIED, ROOT, Report, engine_of

from ict_backends import load_backend
from ict_backends.data.dataset import Dataset
from ict_backends.exchange.importing import import_jcm, import_openai_adm, weights_run
from ict_backends.reports.benchmark import labels_of, random_arrays, random_images
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir
from ict_core import Config
from ict_core.settings import build_config, replace

# Where the authors' outputs are, if anywhere.
FIXTURES = (CARRIED / "fixtures", ROOT.parent / "shared" / "fixtures")
# RAdam's first five steps are momentum alone: the later ones would magnify roundings of its own.
STEPS = 4
NETWORK = {"channels": 32, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": [8], "dropout": 0.3}
ADM_OPEN = {
    "family": "adm",
    "channels": 16,
    "channel_mult": [4, 2],
    "blocks": 1,
    "attention_resolutions": [8],
    "head_channels": 16,
    "dropout_resolution": 0,
    "scale_shift": True,
    "num_classes": 10,
}


def check(report: Report, backend: str) -> None:
    """Do all checks of a backend, each of which is a line of the report."""
    if backend == "jax" and not report.rehearse:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    engine = engine_of(report, backend)
    report.add("device", name=engine.device_name(report.device), versions=_versions(backend))
    config = small_config(report)
    report.attempt("masks are shared", lambda: check_masks(backend, config, report.device))
    with tempfile.TemporaryDirectory() as folder:
        check_steps(report, backend, config, Path(folder))
        for name, make in (("ncsnpp", ncsnpp_fixture), ("adm", adm_fixture)):
            report.attempt(f"the authors' {name}", lambda n=name, m=make: check_fixture(backend, n, m, report, folder))
    report.attempt("memory", lambda: check_memory(backend, config, report))
    if backend == "torch":
        report.attempt("nothing waits", lambda: check_waits(config, report))
        report.attempt("copies and parts of the weights", lambda: check_processes(config, report))


def _versions(backend: str) -> dict[str, str]:
    import importlib.metadata as metadata

    return {name: metadata.version(name) for name in (backend, "numpy")}


def small_config(report: Report, precision: str = "float32") -> Config:
    """Settings of a small network with every kind of layer, and of a training in three stages."""
    size = 8 if report.rehearse else 16
    return build_config(
        {
            "data": {"shape": [3, size, size], "flip": True, "hold": "device"},
            "network": NETWORK | ({"channels": 8, "channel_mult": [1]} if report.rehearse else {}),
            "curriculum": {"s0": 10, "s1": 40},
            "train": {
                "total_steps": STEPS,
                "batch_size": 16,
                "precision": precision,
                "learning_rate": 1e-3,
                "log_every": 2,
                "checkpoint_every": 2,
                "keep_checkpoints": 0,
                "sample_every": 0,
            },
        }
    )


def data_of(config: Config) -> Dataset:
    """Random images of the configuration's shape."""
    return Dataset(random_images(config), None)


def check_masks(backend: str, config: Config, device: str) -> dict[str, Any]:
    """Check that student and teacher at equal levels, with shared dropout of 0.5, have no loss and no gradient.

    At other levels they must have both, and the masks must be those of the CPU.
    """
    heavy = replace(config, network={"dropout": 0.5})
    found = {"torch": _torch_equal_levels, "jax": _jax_equal_levels}[backend](heavy, device)
    # Torch evaluates both passes alike; XLA fuses the student's, whose results are kept, in another way.
    allowed = {"torch": 0.0, "jax": 1e-3}[backend]
    for name in ("loss", "gradient"):
        assert found[name] <= allowed * found[f"{name}_at_other_levels"], found
    assert found["masks_as_on_the_cpu"], found
    return found


def _torch_equal_levels(config: Config, device: str) -> dict[str, Any]:
    import torch

    from ict_backends.torch.batch import make_batch, to_device
    from ict_backends.torch.step import batch_loss
    from ict_backends.torch.weights import load_arrays, make_network
    from ict_backends.training.step_plan import plan_step

    where = torch.device(device)
    network = make_network(config)
    load_arrays(network, random_arrays(config), "random")
    network.to(where)
    images = torch.from_numpy(random_images(config)).to(where)
    batch = make_batch(config, to_device(plan_step(config, 0, len(images)), where), images, None)

    def evaluate(batch: Any) -> tuple[float, float]:
        network.zero_grad()
        loss = batch_loss(network, config, batch)
        loss.mean.backward()
        gradient = max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None)
        return float(loss.per_sample.detach().abs().max()), gradient

    loss, gradient = evaluate(batch._replace(sigma_lo=batch.sigma_hi))
    other_loss, other_gradient = evaluate(batch)
    here = make_batch(config, to_device(plan_step(config, 0, len(images)), torch.device("cpu")), images.cpu(), None)
    return {
        "loss": loss,
        "gradient": gradient,
        "loss_at_other_levels": other_loss,
        "gradient_at_other_levels": other_gradient,
        "masks_as_on_the_cpu": all(torch.equal(a, b.cpu()) for a, b in zip(here.masks, batch.masks, strict=True)),
        "noise_off_the_cpus": float((batch.z.cpu() - here.z).abs().max()),
    }


def _jax_equal_levels(config: Config, device: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from ict_backends.jax.batch import draw_noise, make_batch, to_device
    from ict_backends.jax.device import check_device
    from ict_backends.jax.state import abstract_network, merge_network
    from ict_backends.jax.step import batch_loss
    from ict_backends.jax.weights import load_arrays
    from ict_backends.training.step_plan import plan_step
    from ict_core import key_words

    mesh = check_device(device)
    params, constants = load_arrays(abstract_network(config)[1:], random_arrays(config), mesh, "random")
    images = jnp.asarray(random_images(config).transpose(0, 2, 3, 1))
    plan = plan_step(config, 0, len(images))
    draw = jax.tree.map(lambda a: a[0, 0], to_device([plan], mesh))
    batch = make_batch(config, draw, images, None)

    @jax.jit
    def gradient(params: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            found = batch_loss(merge_network(config, params, constants), config, batch)
            return found.mean, found.per_sample

        return jax.value_and_grad(loss, has_aux=True)(params)

    def evaluate(batch: Any) -> tuple[float, float]:
        (_, per_sample), slope = gradient(params, batch)
        return float(abs(per_sample).max()), max(float(abs(g).max()) for g in jax.tree.leaves(slope))

    loss, largest = evaluate(batch._replace(sigma_lo=batch.sigma_hi))
    other_loss, other_gradient = evaluate(batch)
    cpu = jax.local_devices(backend="cpu")[0]
    z, masks, _ = draw_noise(config, jax.device_put(key_words(plan.row_seeds), cpu))
    return {
        "loss": loss,
        "gradient": largest,
        "loss_at_other_levels": other_loss,
        "gradient_at_other_levels": other_gradient,
        "masks_as_on_the_cpu": all(np.array_equal(a, b) for a, b in zip(masks, batch.masks, strict=True)),
        "noise_off_the_cpus": float(np.abs(np.asarray(z) - np.asarray(batch.z)).max()),
    }


def check_steps(report: Report, backend: str, config: Config, folder: Path) -> None:
    """Check `train` over a few steps from the same weights on the GPU in each precision, and its resuming.

    The weights are compared with those of torch in float32 on the CPU.
    """
    arrays = random_arrays(config)

    def trained(engine: str, device: str, precision: str, name: str) -> RunDir:
        run = weights_run(arrays, small_config(report, precision), folder / name)
        _deterministic(engine, device)
        load_backend(engine).train(run.load_config(), data_of(config), run, device=device, resume=True)
        return run

    expected, begin = _weights(trained("torch", "cpu", "float32", "expected")), _flat(arrays)
    moved = float(np.linalg.norm(expected - begin))

    def distance(run: RunDir) -> float:
        return float(np.linalg.norm(_weights(run) - expected)) / moved

    allowed = {"float32": 1e-4, "tf32": None, "bf16": 1.5 * distance(trained("torch", "cpu", "bf16", "expected-bf16"))}
    runs = {}
    for precision, most in allowed.items():

        def steps(precision: str = precision, most: float | None = most) -> dict[str, Any]:
            runs[precision] = trained(backend, report.device, precision, precision)
            found = {"distance": distance(runs[precision]), "allowed": most}
            assert most is None or found["distance"] <= most, found
            return found

        report.attempt(f"{STEPS} steps in {precision} against torch's float32 on the CPU", steps)
    if "float32" in runs:
        report.attempt("resuming is bit-equal", lambda: check_resuming(backend, runs["float32"], config, report))


def _deterministic(backend: str, device: str) -> None:
    if backend == "torch":
        import torch

        torch.use_deterministic_algorithms(device != "cpu", warn_only=True)


def _flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)]).astype(np.float64)


def _weights(run: RunDir) -> np.ndarray:
    return _flat(load_checkpoint(run.latest_checkpoint()).params)


def check_resuming(backend: str, run: RunDir, config: Config, report: Report) -> dict[str, Any]:
    """Check that the second half of a run, done again from its checkpoint, gives equal bits."""
    expected = load_checkpoint(run.latest_checkpoint())
    shutil.rmtree(run.latest_checkpoint())
    load_backend(backend).train(run.load_config(), data_of(config), run, device=report.device, resume=True)
    found = load_checkpoint(run.latest_checkpoint())
    assert found.step == expected.step == STEPS
    groups = ("params", "ema", "first_moment", "second_moment")
    off = [g for g in groups if not np.array_equal(_flat(getattr(found, g)), _flat(getattr(expected, g)))]
    assert not off, f"not equal: {off}"
    return {"equal": groups}


def fixture_file(name: str) -> Path:
    """The path of a file of the authors' outputs. Raises FileNotFoundError if it is missing."""
    found = [folder / name for folder in FIXTURES if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{name} is not here: {', '.join(map(str, FIXTURES))}")
    return found[0]


def ncsnpp_fixture(folder: Path) -> tuple[RunDir, dict[str, np.ndarray], None]:
    """The authors' NCSN++ as a run, and its inputs and outputs by name."""
    with np.load(fixture_file("ncsnpp_open.npz"), allow_pickle=False) as file:
        whole = dict(file)
    theirs = json.loads(bytes(whole["config_json"]))
    model, size = theirs["model"], theirs["image_size"]
    network = {
        "channels": model["nf"],
        "channel_mult": list(model["ch_mult"]),
        "blocks": model["num_res_blocks"],
        "attention_resolutions": list(model["attn_resolutions"]),
    }
    config = build_config({"data": {"shape": [3, size, size], "source": "unknown"}, "network": network})
    params = {name: a for name, a in whole.items() if name.startswith("params/")}
    io = {k: whole[k] for k in ("net_in_t", "sigma")}
    io |= {k: whole[k].transpose(0, 3, 1, 2) for k in ("net_in_x", "x", "network_output", "consistency_output")}
    return import_jcm(params, config, folder, "the fixture")[0], io, None


def adm_fixture(folder: Path) -> tuple[RunDir, dict[str, np.ndarray], np.ndarray]:
    """The authors' ADM as a run, its inputs and outputs by name, and the classes of its images."""
    from safetensors.numpy import load_file

    config = build_config({"data": {"shape": [3, 16, 16], "source": "unknown"}, "network": ADM_OPEN})
    run = import_openai_adm(load_file(fixture_file("adm_open.safetensors")), config, folder, "the fixture")
    with np.load(fixture_file("adm_open_io.npz"), allow_pickle=False) as file:
        io = dict(file)
    return run, io | {"net_in_t": io["net_in_t"] / 1000}, io["y"]  # theirs is 250 log sigma


def check_fixture(backend: str, name: str, make: Any, report: Report, folder: str) -> dict[str, Any]:
    """Check the network's output and the consistency function's against the authors', in float32."""
    run, io, labels = make(Path(folder) / f"authors-{name}")
    model = load_backend(backend).load_model(run.path, device=report.device)
    found = {"network": (model.network(io["net_in_x"], io["net_in_t"], labels), io["network_output"], 3e-5)}
    found["consistency"] = (model.consistency(io["x"], io["sigma"], labels), io["consistency_output"], 1e-4)
    off = {key: float(np.linalg.norm(a - b) / np.linalg.norm(b)) for key, (a, b, _) in found.items()}
    assert all(off[key] < most for key, (_, _, most) in found.items()), off
    return off


def check_memory(backend: str, config: Config, report: Report) -> dict[str, Any]:
    """Check that the memory of arrays does not grow in 200 further steps."""
    engine, steps = load_backend(backend), 6 if report.rehearse else 200
    images = random_images(config)
    trainer = engine.make_trainer(config, images, labels_of(config, len(images)), report.device)
    trainer.advance(trainer.stride * 3)
    before = engine.memory_in_use(report.device)
    trainer.advance(-(-steps // trainer.stride) * trainer.stride)
    after = engine.memory_in_use(report.device)
    assert before is None or after <= before + 2**20, (before, after)
    return {"bytes_before": before, "bytes_after": after, "steps": steps}


def check_waits(config: Config, report: Report) -> dict[str, Any]:
    """Check that nothing in a whole step, plan and copies included, waits for the GPU: torch raises if it does."""
    import torch

    images = random_images(config)
    trainer = load_backend("torch").make_trainer(config, images, None, report.device)
    trainer.advance(2)
    torch.cuda.set_sync_debug_mode("error") if report.device == "cuda" else None
    try:
        losses = [trainer._step() for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default") if report.device == "cuda" else None
    return {"loss": float(torch.stack(losses).mean())}


def check_processes(config: Config, report: Report) -> dict[str, Any]:
    """Check, in one process with NCCL, that DDP and FSDP2 give the gradient of the network itself."""
    import torch
    import torch.distributed as dist

    from ict_backends.torch.batch import make_batch, to_device
    from ict_backends.torch.parallel import copied, full, sharded
    from ict_backends.torch.step import batch_loss
    from ict_backends.torch.weights import load_arrays, make_network
    from ict_backends.training.step_plan import plan_step

    where = torch.device(report.device, 0) if report.device == "cuda" else torch.device("cpu")
    engine = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    dist.init_process_group(engine, init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
    images = torch.from_numpy(random_images(config)).to(where)
    batch = make_batch(config, to_device(plan_step(config, 0, len(images)), where), images, None)

    def gradient(wrap: Any) -> torch.Tensor:
        network = make_network(config)
        load_arrays(network, random_arrays(config), "random")
        student = wrap(network.to(where))
        batch_loss(student, config, batch).mean.backward()
        return torch.cat([full(p.grad).contiguous().view(-1) for p in network.parameters() if p.grad is not None])

    plain = gradient(lambda network: network)
    wraps = {"ddp": lambda n: copied(n, where), "fsdp2": lambda n: sharded(n, where, 1)}
    found = {name: float((gradient(wrap) - plain).norm() / plain.norm()) for name, wrap in wraps.items()}
    assert max(found.values()) < 1e-5, found
    return {"engine": engine, **found}
