"""`ict import openai-adm` of files without a released name: what the file shows, and what a preset has to say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Ict, Refused
from twins import torch_network

from ict_backends import load_backend
from ict_backends.exchange.openai_adm import official_names, seen_network
from ict_core import ADMConfig, Config
from ict_core.settings import build_config

SMALL: dict[str, Any] = {
    "family": "adm",
    "channels": 32,
    "channel_mult": [1, 2],
    "blocks": 1,
    "attention_resolutions": [8, 4],
    "head_channels": 16,
    "dropout": 0.0,
}
NETWORKS = {
    "attention everywhere": {"num_classes": 3},
    "attention below": {"attention_resolutions": [4], "normalize_qkv": True, "num_classes": 5},
    "no attention but in the middle": {"attention_resolutions": [], "blocks": 2},
    "scale and shift": {"scale_shift": True, "channel_mult": [1, 1, 2], "attention_resolutions": [2]},
    "convolutions": {"resblock_updown": False, "attention_resolutions": [8], "num_classes": 2},
    "one level": {"channel_mult": [2], "attention_resolutions": [8]},
}


def saved(path: Path, settings: dict[str, Any], shape: tuple[int, ...] = (3, 8, 8)) -> tuple[Config, torch.nn.Module]:
    """A state dict in the authors' layout, and the network that it is of."""
    config = build_config({"data": {"shape": shape}, "network": SMALL | settings})
    network = torch_network(config, "float32")
    names = official_names(config.network, shape)
    torch.save({names[name]: a.detach().clone() for name, a in network.state_dict().items()}, path)
    return config, network


def unseen(path: Path, *, normalize: bool, shape: tuple[int, ...] = (3, 8, 8)) -> Path:
    """Settings of only what no file shows."""
    path.write_text(
        f"[data]\nshape = {list(shape)}\n[network]\nfamily = 'adm'\nhead_channels = 16\ndropout = 0.0\n"
        f"normalize_qkv = {str(normalize).lower()}\n"
    )
    return path


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 16)], ids=["square", "wide"])
def test_what_a_file_shows_need_not_be_given(
    ict: Ict, tmp_path: Path, network: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """From names and shapes: widths, blocks, attention, classes, scale and shift, kind of resampling."""
    config, theirs = saved(tmp_path / "ema_0.99997_000100.pt", network, shape)
    assert isinstance(config.network, ADMConfig)
    given = unseen(tmp_path / "x.toml", normalize=config.network.normalize_qkv, shape=shape)
    file, out = tmp_path / "ema_0.99997_000100.pt", tmp_path / "run"
    done = ict("import", "openai-adm", file, "--out", out, "--config", given)
    assert (done.code, done.err) == (0, "")
    assert f"not seen in the file: images of {shape[1]}x{shape[2]}" in done.out
    assert f"normalize_qkv = {str(config.network.normalize_qkv).lower()}" in done.out
    model = load_backend("torch").load_model(out, device="cpu")
    assert model.config.network == config.network
    rng, labels = np.random.default_rng(0), np.array([1, 0]) if config.network.num_classes else None
    x, c_noise = rng.standard_normal((2, *shape)).astype(np.float32), np.array([0.5, -1.0], dtype=np.float32)
    with torch.no_grad():
        y = None if labels is None else torch.tensor(labels)
        expected = theirs(torch.tensor(x), torch.tensor(c_noise), y).numpy()
    np.testing.assert_allclose(model.network(x, c_noise, labels), expected, rtol=1e-5, atol=1e-5)


def test_a_preset_says_what_no_file_shows(ict: Ict, tmp_path: Path) -> None:
    """Here of half precision, and from several processes."""
    config, _ = saved(tmp_path / "x.pt", {"attention_resolutions": [4]})
    arrays = torch.load(tmp_path / "x.pt", weights_only=True)
    torch.save({f"module.{name}": a.half() for name, a in arrays.items()}, tmp_path / "x.pt")
    # Attention is at the second level: at 32, in images of 64x64, as the file shows and unlike the preset.
    (tmp_path / "heads.toml").write_text("[network]\nhead_channels = 16\n")
    options = ("--preset", "imagenet64-stable", "--config", tmp_path / "heads.toml")
    done = ict("import", "openai-adm", tmp_path / "x.pt", "--out", tmp_path / "run", *options)
    assert (done.code, done.err) == (0, "")
    assert "images of 64x64 (so attention at 32), network.head_channels = 16, network.normalize_qkv = true" in done.out
    found = load_backend("torch").load_model(tmp_path / "run", device="cpu").config
    network = found.network
    assert isinstance(network, ADMConfig)
    assert (network.channels, network.channel_mult, network.num_classes) == (32, (1, 2), 0)
    assert (found.data.shape, found.data.source, found.sample.second_sigma) == ((3, 64, 64), "unknown", 1.526)
    assert config.network.normalize_qkv is False


def test_what_is_not_said_or_contradicts_the_file_is_refused(refused: Refused, tmp_path: Path) -> None:
    saved(tmp_path / "x.pt", {"num_classes": 3})
    start = ("import", "openai-adm", tmp_path / "x.pt", "--out", tmp_path / "run")
    refused(2, "none of the released names; --preset NAME or --config FILE.toml", *start)
    (tmp_path / "a.toml").write_text("[network]\nhead_channels = 16\n")
    refused(2, "does not show the size of its images: give data.shape", *start, "--config", tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text("[data]\nshape = [3, 8, 8]\n[network]\nhead_channels = 16\nnum_classes = 4\n")
    refused(1, re.escape("label_emb.weight is [3, 128] and not [4, 128]"), *start, "--config", tmp_path / "b.toml")
    refused(1, 'network.family is "ncsnpp"', *start, "--preset", "cifar10")
    refused(2, 'unknown preset "imagenet"', *start, "--preset", "imagenet")
    assert not (tmp_path / "run").exists()


def test_names_of_another_network_show_nothing() -> None:
    assert seen_network({}) is None
    assert seen_network({"input_blocks.0.0.weight": np.zeros((4, 3, 3, 3))}) is None
    assert seen_network({"output_blocks.x.0.weight": np.zeros(1), "time_embed.0.weight": np.zeros(1)}) is None
