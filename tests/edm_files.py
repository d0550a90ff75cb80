"""Files as EDM's training writes them, of any of its networks with random weights.

Loaded as `edm_files` through pytest's `pythonpath`.

`evaluate` is the networks' forward pass, written from the papers for torch in float64; the arrays that it asks for are
those of the file.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ict_backends.errors import UserError
from ict_backends.exchange.edm import edm_config
from ict_backends.exchange.edm_pickle import read_edm
from ict_backends.exchange.importing import edm_weights

# What each module asks to be executed: it leaves this file behind.
TRACE = "ICT_PICKLE_CODE_WAS_EXECUTED"
TRAP = f"open({TRACE!r}, 'w').write('x')\nraise SystemExit('code inside a checkpoint was executed')\n"

DDPMPP = {
    "img_resolution": 16,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 0,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "augment_dim": 9,
    "dropout": 0.13,
}
NCSNPP = DDPMPP | {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
ADM = {
    "img_resolution": 16,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 3,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
# Settings of SongUNet, then of DhariwalUNet, that the released fixtures do not have.
SONG = {
    "DDPM++": DDPMPP,
    "DDPM++, three levels, two blocks": DDPMPP
    | {"channel_mult": [1, 2, 2], "num_blocks": 2, "attn_resolutions": [16, 4]},
    "DDPM++, classes, no augmentation": DDPMPP | {"label_dim": 5, "augment_dim": 0},
    "DDPM++, wide filter": DDPMPP | {"resample_filter": [1, 3, 3, 1]},
    "DDPM++, a pyramid of averages": DDPMPP | {"encoder_type": "residual"},
    "NCSN++": NCSNPP,
    "NCSN++, classes, three levels": NCSNPP | {"label_dim": 4, "channel_mult": [2, 1, 3], "num_blocks": 2},
    "NCSN++, grey, six taps": NCSNPP | {"in_channels": 1, "out_channels": 1, "resample_filter": [1, 2, 4, 4, 2, 1]},
}
DHARIWAL = {
    "ADM": ADM,
    "ADM, no classes, augmentation": ADM | {"label_dim": 0, "augment_dim": 9},
    "ADM, several heads": ADM | {"model_channels": 64, "channel_mult": [1, 2], "attn_resolutions": [16, 8]},
    "ADM, three levels": ADM | {"channel_mult": [1, 2, 2], "num_blocks": 2, "attn_resolutions": [16, 8, 4]},
    "ADM, widths of no 32": ADM | {"model_channels": 20, "channel_mult": [1, 4], "attn_resolutions": []},
    "ADM, one wide head": ADM | {"model_channels": 96, "channel_mult": [1, 1]},
}
NETWORKS = {name: ("SongUNet", s) for name, s in SONG.items()}
NETWORKS |= {name: ("DhariwalUNet", s) for name, s in DHARIWAL.items()}


class Weights(dict[str, Tensor]):
    """Arrays by name, each drawn when it is first asked for: those of a network after its first evaluation."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def get_array(self, name: str, *shape: int, mean: float = 0.0, std: float = 0.1) -> Tensor:
        if name not in self:
            self[name] = (mean + std * torch.randn(shape, generator=self.generator)).to(self.dtype)
        assert self[name].shape == shape
        return self[name].double()

    def filter(self, name: str, taps: list[float]) -> Tensor:
        row = torch.tensor(taps, dtype=torch.float64)
        kernel = torch.outer(row, row) / row.sum() ** 2
        self.setdefault(f"{name}.resample_filter", kernel[None, None].float())
        return kernel

    def linear(self, name: str, x: Tensor, out: int, *, bias: bool = True) -> Tensor:
        weight = self.get_array(f"{name}.weight", out, x.shape[1], std=x.shape[1] ** -0.5)
        return F.linear(x, weight, self.get_array(f"{name}.bias", out) if bias else None)

    def conv(self, name: str, x: Tensor, out: int, size: int = 3) -> Tensor:
        weight = self.get_array(f"{name}.weight", out, x.shape[1], size, size, std=(x.shape[1] * size**2) ** -0.5)
        return F.conv2d(x, weight, self.get_array(f"{name}.bias", out), padding=size // 2)

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        width = x.shape[1]
        gain, shift = self.get_array(f"{name}.weight", width, mean=1.0), self.get_array(f"{name}.bias", width)
        return F.group_norm(x, min(32, width // 4), gain, shift, eps)


def resampled(kernel: Tensor, x: Tensor, *, up: bool) -> Tensor:
    """Images of twice or half the size, by a filter."""
    weight = kernel.expand(x.shape[1], 1, *kernel.shape)
    call = {"stride": 2, "padding": (len(kernel) - 1) // 2, "groups": x.shape[1]}
    return F.conv_transpose2d(x, 4 * weight, **call) if up else F.conv2d(x, weight, **call)


def evaluate(kind: str, settings: Mapping[str, Any], w: Weights, x: Tensor, noise: Tensor, labels: Any) -> Tensor:
    """F(x, c_noise, labels) of one of EDM's networks, [b, c, h, w] float64, without augmentation and dropout."""
    song = kind == "SongUNet"
    s = {"embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard", "resample_filter": [1, 1]}
    s |= {"label_dim": 0, "augment_dim": 0} | dict(settings)
    wide, attention, size = s["model_channels"], s["attn_resolutions"], s["img_resolution"]
    embedded = embedding(w, s, noise, labels, song=song)

    def block(name: str, x: Tensor, out: int, *, attend: bool = False, up: bool = False, down: bool = False) -> Tensor:
        eps, scale = (1e-6, math.sqrt(0.5)) if song else (1e-5, 1.0)
        inside, outside = F.silu(w.norm(f"{name}.norm0", x, eps)), x
        if up or down:
            kernel = w.filter(f"{name}.conv0", s["resample_filter"])
            w.filter(f"{name}.skip", s["resample_filter"])
            inside, outside = (resampled(kernel, a, up=up) for a in (inside, x))
        inside = w.conv(f"{name}.conv0", inside, out)
        added = w.linear(f"{name}.affine", embedded, out if song else 2 * out)[:, :, None, None]
        if song:
            inside = F.silu(w.norm(f"{name}.norm1", inside + added, eps))
        else:
            factor, shift = added.chunk(2, dim=1)
            inside = F.silu(w.norm(f"{name}.norm1", inside, eps) * (1 + factor) + shift)
        if outside.shape[1] != out or (song and (up or down)):
            outside = w.conv(f"{name}.skip", outside, out, 1)
        x = (outside + w.conv(f"{name}.conv1", inside, out)) * scale
        heads = 0 if not attend else 1 if song else out // 64
        return x if heads == 0 else (x + attended(w, name, x, heads, eps)) * scale

    x, aux, skips = w.conv(f"enc.{size}x{size}_conv", x, wide * (1 if song else s["channel_mult"][0])), x, []
    skips.append(x)
    for i, mult in enumerate(s["channel_mult"]):
        here = f"enc.{size >> i}x{size >> i}"
        if i > 0:
            x = block(f"{here}_down", x, x.shape[1], down=True)
            if s["encoder_type"] == "residual":
                name, taps = f"{here}_aux_residual", s["resample_filter"]
                kernel, channels = w.filter(name, taps), x.shape[1]
                weight = w.get_array(f"{name}.weight", channels, aux.shape[1], 3, 3)
                aux = F.conv2d(aux, weight, padding=1 + (len(taps) - 1) // 2)
                aux = F.conv2d(aux, kernel.expand(channels, 1, *kernel.shape), stride=2, groups=channels)
                aux = aux + w.get_array(f"{name}.bias", channels)[:, None, None]
                x = aux = (x + aux) / math.sqrt(2)
            skips.append(x)
        for j in range(s["num_blocks"]):
            x = block(f"{here}_block{j}", x, wide * mult, attend=size >> i in attention)
            skips.append(x)
    for i, mult in reversed(list(enumerate(s["channel_mult"]))):
        here = f"dec.{size >> i}x{size >> i}"
        if i == len(s["channel_mult"]) - 1:
            x = block(f"{here}_in1", block(f"{here}_in0", x, x.shape[1], attend=True), x.shape[1])
        else:
            x = block(f"{here}_up", x, x.shape[1], up=True)
        for j in range(s["num_blocks"] + 1):
            attend = size >> i in attention and (not song or j == s["num_blocks"])
            x = block(f"{here}_block{j}", torch.cat([x, skips.pop()], 1), wide * mult, attend=attend)
    norm, conv = (f"{here}_aux_norm", f"{here}_aux_conv") if song else ("out_norm", "out_conv")
    return w.conv(conv, F.silu(w.norm(norm, x, 1e-6 if song else 1e-5)), s["out_channels"])


def embedding(w: Weights, s: Mapping[str, Any], noise: Tensor, labels: Any, *, song: bool) -> Tensor:
    """What the blocks are given of the noise level and the label, [b, 4 channels]."""
    width = s["model_channels"] * (s["channel_mult_noise"] if song else 1)
    half = width // 2
    if s["embedding_type"] == "fourier":
        frequencies = 2 * math.pi * w.get_array("map_noise.freqs", half, std=1.0)
        angles = noise[:, None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], 1)
    else:
        angles = noise[:, None] * 10_000 ** (-torch.arange(half).double() / (half - song))
        features = torch.cat([angles.cos(), angles.sin()], 1)
    if song:
        features = torch.cat([features[:, half:], features[:, :half]], 1)
    classes = None if labels is None else F.one_hot(labels, s["label_dim"]).double()
    if song and classes is not None:
        features = features + w.linear("map_label", classes * math.sqrt(s["label_dim"]), width)
    if s["augment_dim"]:
        w.get_array("map_augment.weight", width, s["augment_dim"])
    embedded = w.linear(
        "map_layer1", F.silu(w.linear("map_layer0", features, 4 * s["model_channels"])), 4 * s["model_channels"]
    )
    if not song and classes is not None:
        embedded = embedded + w.linear("map_label", classes, embedded.shape[1], bias=False)
    return F.silu(embedded)


def attended(w: Weights, name: str, x: Tensor, heads: int, eps: float) -> Tensor:
    """Self-attention over the pixels; its one product has rows (head, channel, three)."""
    b, c, h, wide = x.shape
    qkv = w.conv(f"{name}.qkv", w.norm(f"{name}.norm2", x, eps), 3 * c, 1).reshape(b, heads, c // heads, 3, h * wide)
    q, k, v = qkv.unbind(3)
    weights = torch.softmax(q.transpose(2, 3) @ k / math.sqrt(c // heads), dim=-1)
    return w.conv(f"{name}.proj", (v @ weights.transpose(2, 3)).reshape(b, c, h, wide), c, 1)


def inputs(settings: Mapping[str, Any], seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images, c_noise and labels to evaluate a network with."""
    generator, size = torch.Generator().manual_seed(seed), settings["img_resolution"]
    x = torch.randn((3, settings["in_channels"], size, size), generator=generator).double()
    classes = settings.get("label_dim", 0)
    return x, torch.tensor([-1.5, -0.2, 1.0]).double(), torch.tensor([0, 1, classes - 1]) if classes else None


class Reduced:
    """An object that is pickled as a call: of a function with arguments, then with a state."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def _reconstruct_persistent_obj(meta: Any) -> None:
    raise AssertionError("code inside a checkpoint was asked for")


class EasyDict(dict[str, Any]):
    """A dict of another name."""


@contextlib.contextmanager
def their_modules() -> Iterator[Callable[..., Any]]:
    """Let pickles name EDM's own modules; gives the function that modules are calls of."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    for module, thing in ((persistence, _reconstruct_persistent_obj), (util, EasyDict)):
        setattr(module, thing.__name__, thing)
    names = {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": persistence}
    names |= {"dnnlib": types.ModuleType("dnnlib"), "dnnlib.util": util}
    old = _reconstruct_persistent_obj.__module__, EasyDict.__module__
    _reconstruct_persistent_obj.__module__, EasyDict.__module__ = "torch_utils.persistence", "dnnlib.util"
    sys.modules.update(names)
    try:
        yield _reconstruct_persistent_obj
    finally:
        _reconstruct_persistent_obj.__module__, EasyDict.__module__ = old
        for name in names:
            del sys.modules[name]


def as_parameter(tensor: Tensor) -> Any:
    """A tensor as today's torch pickles it."""
    return torch.nn.Parameter(tensor)


def as_old_tensor(tensor: Tensor) -> Any:
    """A tensor as the first versions of torch pickled it."""
    return Reduced(
        torch._utils._rebuild_tensor,
        (tensor.storage(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()),
    )


def module(
    kind: str,
    arrays: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    inner: Mapping[str, Any] | None = None,
    **state: Any,
) -> Any:
    """A module, with its `arrays` by dotted names, already as they are to be pickled, or with the modules `inner`."""
    own = {name: value for name, value in arrays.items() if "." not in name}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in arrays.items():
        head, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(head, {})[rest] = value
    modules = {name: _inner(name, part) for name, part in parts.items()} if inner is None else dict(inner)
    buffers = {name: own.pop(name) for name in ("resample_filter", "freqs") if name in own}
    content = {"_parameters": OrderedDict(own), "_buffers": buffers, "_modules": OrderedDict(modules), **state}
    content |= {"_init_args": (), "_init_kwargs": dict(settings or {}), "training": False}
    meta = {"type": "class", "version": 6, "module_src": TRAP, "class_name": kind, "state": content}
    return Reduced(_reconstruct_persistent_obj, (meta,))


def _inner(name: str, arrays: Mapping[str, Any]) -> Any:
    if name not in ("enc", "dec"):
        return module("UNetBlock", arrays)
    parts = {head.partition(".")[0] for head in arrays}
    inner = {
        p: module("UNetBlock", {n[len(p) + 1 :]: a for n, a in arrays.items() if n.startswith(f"{p}.")}) for p in parts
    }
    group = torch.nn.ModuleDict()
    group.__dict__["_modules"] = inner
    return group


def write_edm(
    kind: str,
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    outer: str = "EDMPrecond",
    protocol: int = 4,
    as_pickled: Callable[[Tensor], Any] = as_parameter,
    sigma_data: Any = 0.5,
) -> bytes:
    """The bytes of a file of EDM's training with these weights, by their names in the network."""
    arrays = {
        name: value if "filter" in name or "freqs" in name else as_pickled(value) for name, value in weights.items()
    }
    with their_modules():
        network = module(kind, arrays, settings)
        whole = module(outer, {}, inner={"model": network}, sigma_data=sigma_data, use_fp16=False)
        loss = module("EDMLoss", {}, P_mean=-1.2)
        content = {"ema": whole, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": EasyDict(path="images")}
        stream = io.BytesIO()
        pickle.dump(content, stream, protocol)
    return stream.getvalue()


def make_weights(
    kind: str, settings: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> tuple[Weights, np.ndarray]:
    """Random weights of a network, and what it computes with them of `inputs`."""
    weights = Weights(dtype=dtype)
    with torch.no_grad():
        return weights, evaluate(kind, settings, weights, *inputs(settings)).numpy()


# --- mutated files ---------------------------------------------------------------------------------------------------


class EDMSample:
    """A file of EDM's training, which is mutated. The format has no checksums: numbers may change without notice."""

    def __init__(self, file: Path, content: bytes) -> None:
        self.file, self.content = file, content
        file.write_bytes(content)
        self.arrays = self._read()

    def _read(self) -> Mapping[str, np.ndarray]:
        found = read_edm(self.file)
        return edm_weights(found.arrays, edm_config(found, "it"), "it")[0]

    def outcome(self, content: bytes) -> str:
        """ "refused", "unchanged" or "changed" for another content of the file.

        Raises AssertionError for an error of several lines, where code was executed, and for arrays of other names.
        """
        self.file.write_bytes(content)
        found, error = None, ""
        try:
            found = self._read()
        except UserError as refusal:
            error = str(refusal)
        assert not Path(TRACE).exists(), "code of the file was executed"
        if found is None:
            assert error.strip()
            assert "\n" not in error
            return "refused"
        assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in found.values())
        same = found.keys() == self.arrays.keys()
        return "unchanged" if same and all(np.array_equal(found[n], a) for n, a in self.arrays.items()) else "changed"


def make_edm_samples(folder: Path) -> dict[str, EDMSample]:
    """A sample of each network and version of pickles, by its name, with few numbers in them."""
    small = {"img_resolution": 8, "model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [8]}
    kinds = {"SongUNet": DDPMPP | small, "DhariwalUNet": ADM | small | {"model_channels": 64}}
    samples = {}
    for kind, settings in kinds.items():
        weights, _ = make_weights(kind, settings)
        for protocol in (2, 4):
            name = f"EDM {kind}, protocol {protocol}"
            file = folder / f"{kind}{protocol}.pkl"
            samples[name] = EDMSample(file, write_edm(kind, settings, weights, protocol=protocol))
    return samples
