"""The backends have the same files with the same public names; each asymmetry is listed here, with its reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

BACKENDS = Path(__file__).resolve().parents[2] / "backends"
FILES = sorted({p.name for backend in ("torch", "jax") for p in (BACKENDS / backend).glob("*.py")})

# (file, backend, name) -> why the other backend has no such name.
ASYMMETRIES = {
    ("device.py", "jax", "BATCH_AXIS"): "one process drives many devices, as a mesh",
    ("device.py", "jax", "on_cpu"): "one process drives many devices, as a mesh",
    ("device.py", "jax", "put"): "the batch is split over the mesh",
    ("device.py", "torch", "compiled_on_gpu"): "JAX compiles everything",
    ("device.py", "torch", "upload"): "in JAX copies to a device wait for nothing by themselves",
    ("device.py", "jax", "sharded"): "the batch is split over the mesh",
    ("device.py", "jax", "replicated"): "the batch is split over the mesh",
    ("device.py", "jax", "split"): "the batch is split over the mesh",
    ("device.py", "torch", "other_devices"): "a network has one device; in JAX an array may be on many",
    ("layers.py", "jax", "Initializer"): "flax takes initialisers as functions",
    ("layers.py", "jax", "dropped"): "torch multiplies by a number in float32, whatever the dtype of the array",
    ("layers.py", "jax", "times"): "torch multiplies by a number in float32, whatever the dtype of the array",
    ("layers.py", "jax", "variance_scaling"): "flax takes initialisers as functions",
    ("state.py", "jax", "radam_factors"): "torch.optim.RAdam has them",
    ("layers.py", "torch", "variance_scaling_"): "torch fills weights in place",
    ("adm.py", "jax", "dense"): "torch's layers initialise themselves as the authors have it",
    ("adm.py", "jax", "torch_uniform"): "torch's layers initialise themselves as the authors have it",
    ("layers.py", "torch", "group_norm"): "written out for a compiler; JAX's has its gradient written out",
    ("layers.py", "torch", "fir_kernel"): "one depthwise convolution",
    ("layers.py", "torch", "filter2d"): "one depthwise convolution",
    ("layers.py", "jax", "fir_taps"): "shifted sums, axis by axis: XLA's depthwise convolution is slow on the CPU",
    ("layers.py", "jax", "filter_axis"): "shifted sums, axis by axis: XLA's depthwise convolution is slow on the CPU",
    ("layers.py", "jax", "double_axis"): "shifted sums, axis by axis: XLA's depthwise convolution is slow on the CPU",
    (
        "layers.py",
        "jax",
        "filter_both_axes",
    ): "shifted sums, axis by axis: XLA's depthwise convolution is slow on the CPU",
    ("layers.py", "jax", "Frequencies"): "torch has buffers for what is stored and not trained",
    ("state.py", "jax", "abstract_network"): "a network is its structure and its weights, apart",
    ("state.py", "jax", "split_network"): "a network is its structure and its weights, apart",
    ("state.py", "jax", "merge_network"): "a network is its structure and its weights, apart",
    ("state.py", "jax", "make_optimizer"): "optax keeps the optimiser's rule and its state apart",
    ("state.py", "jax", "key_data"): "JAX's random keys are arrays",
    ("state.py", "jax", "state_shardings"): "the batch is split over the mesh",
    ("state.py", "torch", "Weights"): "a network has its weights in it, and an optimiser takes them as a vector",
    ("step.py", "jax", "apply_gradient"): "a step of several parts is dispatched in parts",
    ("step.py", "jax", "loss_gradient"): "a step of several parts is dispatched in parts",
    ("device.py", "jax", "keep_compiled"): "torch keeps its compiler's results by itself",
    ("device.py", "jax", "offer_cores"): "torch's operations use all cores",
    ("device.py", "jax", "worthwhile"): "torch's operations use all cores",
    ("layers.py", "torch", "sum_of_branches"): "XLA fuses biases and sums, and has no arrays to change in place",
    ("layers.py", "torch", "rescaled"): "XLA fuses biases and sums, and has no arrays to change in place",
    ("train.py", "jax", "Advance"): "several steps are compiled into one dispatch",
    ("device.py", "torch", "keep_freed_memory"): "XLA plans the memory of a step beforehand",
    ("flat.py", "torch", "flatten"): "XLA fuses an optimiser's operations over all arrays",
    ("flat.py", "torch", "in_memory_order"): "XLA fuses an optimiser's operations over all arrays",
    ("flat.py", "torch", "unflatten"): "XLA fuses an optimiser's operations over all arrays",
    ("layers.py", "jax", "group_normalize"): "its gradient is written out; torch's own is as fast",
    ("step.py", "torch", "take_gradient"): "gradients are collected where autograd has left them",
    ("state.py", "torch", "init_network"): "weights and moments are made together, on the devices",
    ("state.py", "torch", "make_state"): "weights and moments are made together, on the devices",
    ("parallel.py", "torch", "accumulating"): "XLA exchanges gradients where a step needs them",
    ("parallel.py", "torch", "copied"): "XLA splits a step over the devices by where its arrays lie",
    ("parallel.py", "torch", "sharded"): "XLA splits a step over the devices by where its arrays lie",
    ("parallel.py", "torch", "fill"): "FSDP2 has a tensor type of its own",
    ("parallel.py", "torch", "full"): "FSDP2 has a tensor type of its own",
    ("parallel.py", "torch", "local"): "FSDP2 has a tensor type of its own",
    ("weights.py", "torch", "to_numpy"): "FSDP2 has a tensor type of its own",
    ("dispatch.py", "jax", "Steps"): "several steps are compiled into one dispatch",
    ("dispatch.py", "jax", "steps_for"): "several steps are compiled into one dispatch",
    ("dispatch.py", "jax", "steps_per_dispatch"): "several steps are compiled into one dispatch",
    ("dispatch.py", "jax", "train_step_in_parts"): "several steps are compiled into one dispatch",
    ("dispatch.py", "jax", "train_steps"): "several steps are compiled into one dispatch",
    ("train.py", "jax", "report_first_call"): "several steps are compiled into one dispatch",
    ("features.py", "torch", "LoadedFeatures"): "the field's feature networks are torch's files",
    ("features.py", "torch", "load_features"): "the field's feature networks are torch's files",
}


def public_names(backend: str, file: str) -> set[str]:
    """The public functions, classes and constants that a file defines; none where there is no file."""
    names = set()
    if not (BACKENDS / backend / file).is_file():
        return names
    for node in ast.parse((BACKENDS / backend / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def other(backend: str) -> str:
    return {"torch": "jax", "jax": "torch"}[backend]


def test_both_have_the_same_files() -> None:
    """But for those whose every name is listed as an asymmetry."""
    one_sided = {file for file, backend, _ in ASYMMETRIES if not (BACKENDS / other(backend) / file).is_file()}
    assert one_sided == {"dispatch.py", "features.py", "flat.py"}
    for backend in ("torch", "jax"):
        assert sorted({p.name for p in (BACKENDS / backend).glob("*.py")} | one_sided) == FILES


@pytest.mark.parametrize("file", FILES)
def test_both_have_the_same_public_names(file: str) -> None:
    names = {backend: public_names(backend, file) for backend in ("torch", "jax")}
    for backend, other in (("torch", "jax"), ("jax", "torch")):
        listed = {name for (f, b, name) in ASYMMETRIES if (f, b) == (file, backend)}
        assert names[backend] - names[other] == listed
