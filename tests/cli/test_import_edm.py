"""`ict import edm`: diffusion models of EDM become runs that compute what they did. Nothing of a file is executed."""

from __future__ import annotations

import io
import pickle
import struct
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from command_line import Ict, Refused
from data_samples import mutate
from edm_files import (
    ADM,
    DDPMPP,
    NCSNPP,
    NETWORKS,
    TRACE,
    EDMSample,
    Reduced,
    as_old_tensor,
    as_parameter,
    inputs,
    make_edm_samples,
    make_weights,
    module,
    their_modules,
    write_edm,
)
from flax import nnx
from safetensors.numpy import save_file
from tiny import TINY
from twins import assert_close, jax_weights, nchw, nhwc, torch_network

from ict_backends.exchange.edm import edm_config
from ict_backends.exchange.edm_pickle import read_edm
from ict_backends.exchange.importing import edm_weights
from ict_backends.jax.state import merge_network
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir
from ict_core import Config, load_config

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
OPEN = ["ddpmpp", "ddpmpp_cond", "adm"]
Arrays = Mapping[str, np.ndarray]


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every test ends without the trace that the code in its files would leave in the working folder."""
    work = tmp_path.parent / f"{tmp_path.name}-work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield
    assert not (work / TRACE).exists()


def reference(name: str) -> Path:
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"reference fixtures are not here: {path}")
    return path


def imported(ict: Ict, file: Path, out: Path, *options: object) -> tuple[Config, Arrays, str]:
    """The settings and the arrays of a run that was made of a file, and what the command said."""
    done = ict("import", "edm", file, "--out", out, *options)
    assert (done.code, done.err) == (0, "")
    return load_config(out / "config.toml"), load_checkpoint(RunDir(out).latest_checkpoint()).ema, done.out


def output(backend: str, config: Config, arrays: Arrays, dtype: str, x: Any, c_noise: Any, labels: Any) -> np.ndarray:
    """What our network computes in a backend and a precision, [b, c, h, w]."""
    network = torch_network(config, "float32")
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    x, c_noise = (np.asarray(a, dtype) for a in (x, c_noise))
    if backend == "torch":
        given = None if labels is None else torch.as_tensor(labels)
        with torch.no_grad():
            return network.to(getattr(torch, dtype))(torch.tensor(x), torch.tensor(c_noise), given).numpy()
    with jax.enable_x64(dtype == "float64"):
        twin = merge_network(config, *jax_weights(config, network, dtype))
        given = [] if labels is None else [jnp.asarray(np.asarray(labels))]
        return nchw(nnx.jit(lambda m, *a: m(*a))(twin, nhwc(x), jnp.asarray(c_noise), *given))


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("name", OPEN)
def test_a_file_of_edm_computes_what_it_did(ict: Ict, tmp_path: Path, name: str, backend: str) -> None:
    config, arrays, said = imported(ict, reference(f"edm_{name}_open.pkl"), tmp_path / "run")
    assert config.noise.sigma_data == 0.5
    assert "from ema of" in said
    assert ("map_augment.weight is left out" in said) == (name != "adm")
    assert f"ict train --init {tmp_path / 'run'}" in said
    given = np.load(reference(f"edm_{name}_open_io.npz"))
    labels = given.get("labels")
    found = output(backend, config, arrays, "float32", given["x_in"], given["c_noise"], labels)
    assert_close(found, given["network_output"], 1e-5)
    sigma, x = given["sigma"].astype(np.float64), given["x"].astype(np.float64)
    x_in, c_noise = x / np.sqrt(sigma**2 + 0.25)[:, None, None, None], np.log(sigma) / 4
    exact = output(backend, config, arrays, "float64", x_in, c_noise, labels)
    assert_close(exact, given["network_output_from_float64"].astype(np.float64), 1e-7)


@pytest.mark.parametrize("name", OPEN)
def test_a_state_dict_has_the_same_arrays(ict: Ict, tmp_path: Path, name: str) -> None:
    _, arrays, _ = imported(ict, reference(f"edm_{name}_open.pkl"), tmp_path / "run")
    settings = tmp_path / "run" / "config.toml"
    file = reference(f"edm_{name}_open_state.pt")
    _, same, _ = imported(ict, file, tmp_path / "same", "--config", settings)
    assert same.keys() == arrays.keys()
    assert all(np.array_equal(same[n], array) for n, array in arrays.items())
    read = read_edm(reference(f"edm_{name}_open.pkl")).arrays
    theirs = torch.load(file, weights_only=True)
    assert theirs.keys() == read.keys()
    assert all(np.array_equal(theirs[n].numpy(), array) for n, array in read.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_compute_what_they_did(tmp_path: Path, name: str) -> None:
    kind, settings = NETWORKS[name]
    weights, expected = make_weights(kind, settings)
    (tmp_path / "x.pkl").write_bytes(write_edm(kind, settings, weights))
    read = read_edm(tmp_path / "x.pkl")
    config = edm_config(read, name)
    arrays, left_out = edm_weights(read.arrays, config, name)
    assert len(left_out) == (settings.get("augment_dim", 0) > 0)
    found = output("torch", config, arrays, "float64", *inputs(settings))
    # Frequencies that are not stored are those of float32.
    assert_close(found, expected, 1e-12 if settings.get("embedding_type") == "fourier" else 1e-7)


@pytest.mark.parametrize("name", ["NCSN++, classes, three levels", "ADM, widths of no 32"])
def test_other_networks_are_the_same_in_jax(tmp_path: Path, name: str) -> None:
    kind, settings = NETWORKS[name]
    weights, expected = make_weights(kind, settings)
    (tmp_path / "x.pkl").write_bytes(write_edm(kind, settings, weights))
    read = read_edm(tmp_path / "x.pkl")
    config = edm_config(read, name)
    arrays, _ = edm_weights(read.arrays, config, name)
    assert_close(output("jax", config, arrays, "float64", *inputs(settings)), expected, 1e-7)


def test_the_settings_are_those_of_the_file(tmp_path: Path) -> None:
    settings = NCSNPP | {"label_dim": 4, "model_channels": 8, "dropout": 0.05}
    weights, _ = make_weights("SongUNet", settings)
    (tmp_path / "x.pkl").write_bytes(write_edm("SongUNet", settings, weights, sigma_data=np.float64(0.25)))
    config = edm_config(read_edm(tmp_path / "x.pkl"), "it")
    network = config.network
    assert (network.embedding, network.embedding_scale, network.labels_at) == ("fourier", 1.0, "features")
    assert (network.fir_kernel, network.input_pyramid, network.skip_rescale) == ((1, 3, 3, 1), True, True)
    assert (network.channels, network.channel_mult, network.blocks, network.num_classes) == (8, (1, 2), 1, 4)
    assert (network.attention_resolutions, network.dropout) == ((8,), 0.05)
    assert (config.data.shape, config.data.source, config.noise.sigma_data) == ((3, 16, 16), "unknown", 0.25)


@pytest.mark.parametrize(("kind", "settings"), [("SongUNet", DDPMPP), ("DhariwalUNet", ADM)])
def test_label_dropout_is_that_of_the_file_where_there_are_classes(
    ict: Ict, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    for classes, dropout in ((3, 0.1), (3, None), (0, 0.1)):
        given = settings | {"label_dim": classes} | ({} if dropout is None else {"label_dropout": dropout})
        weights, _ = make_weights(kind, given)
        (tmp_path / "x.pkl").write_bytes(write_edm(kind, given, weights))
        out = tmp_path / f"run-{classes}-{dropout}"
        config, _, _ = imported(ict, tmp_path / "x.pkl", out)
        assert config.train.label_dropout == (dropout or 0.0) * (classes > 0)
    command = ("sample", tmp_path / "run-3-0.1", "--guidance", 2, "--num", 1, "--steps", 1, "--device", "cpu")
    done = ict(*command, "--out", tmp_path / "samples.png")
    assert (done.code, "guidance may harm" in done.err) == (0, False)


VARIANTS: dict[str, dict[str, Any]] = {
    **{f"protocol {p}": {"protocol": p} for p in (0, 2, 3, 5)},
    "first tensors": {"as_pickled": as_old_tensor},
    "plain tensors": {"as_pickled": lambda tensor: tensor},
    "halves": {"as_pickled": lambda tensor: as_parameter(tensor.half())},
    "bfloat16": {"as_pickled": lambda tensor: as_parameter(tensor.bfloat16())},
    "doubles": {"as_pickled": lambda tensor: as_parameter(tensor.double())},
    "turned": {"as_pickled": lambda tensor: as_parameter(tensor.T.contiguous().T if tensor.ndim == 2 else tensor)},
    "channels last": {
        "as_pickled": lambda t: as_parameter(t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t)
    },
    "part of a storage": {"as_pickled": lambda tensor: as_parameter(torch.cat([tensor, tensor])[len(tensor) :])},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_of_writing_is_read(tmp_path: Path, name: str) -> None:
    settings = DDPMPP | {"model_channels": 8, "label_dim": 2}
    weights, _ = make_weights("SongUNet", settings)
    content = write_edm("SongUNet", settings, weights, **VARIANTS[name])
    (tmp_path / "x.pkl").write_bytes(content)
    found = read_edm(tmp_path / "x.pkl").arrays
    assert {n.removeprefix("model.") for n in found} == weights.keys()
    rounded = {"halves": torch.float16, "bfloat16": torch.bfloat16}.get(name, torch.float32)
    for key, array in found.items():
        tensor = weights[key.removeprefix("model.")]
        kept = tensor if "filter" in key else tensor.to(rounded).float()
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, kept.numpy())


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("kind", ["pt", "safetensors", "npz", "NPZ", "Safetensors"])
def test_plain_state_dicts_are_imported_by_settings(ict: Ict, tmp_path: Path, kind: str, prefix: str) -> None:
    settings = DDPMPP | {"model_channels": 8, "channel_mult": [1]}
    weights, _ = make_weights("SongUNet", settings)
    (tmp_path / "x.pkl").write_bytes(write_edm("SongUNet", settings, weights))
    _, arrays, _ = imported(ict, (tmp_path / "x.pkl").rename(tmp_path / "x.PKL"), tmp_path / "run")
    plain = {f"{prefix}{name}": tensor.numpy() for name, tensor in weights.items()}
    file = tmp_path / f"x.{kind}"
    if kind.lower() == "npz":
        with open(file, "wb") as stream:
            np.savez(stream, **plain)
    elif kind == "pt":
        torch.save({name: torch.from_numpy(array) for name, array in plain.items()}, file)
    else:
        save_file(plain, file)
    _, same, _ = imported(ict, file, tmp_path / "same", "--config", tmp_path / "run" / "config.toml")
    assert all(np.array_equal(same[name], array) for name, array in arrays.items())


def test_a_plain_state_dict_is_a_diffusion_model_unless_its_settings_say_more(ict: Ict, tmp_path: Path) -> None:
    settings = DDPMPP | {"model_channels": 8, "channel_mult": [1], "attn_resolutions": []}
    weights, _ = make_weights("SongUNet", settings)
    torch.save(dict(weights), tmp_path / "x.pt")
    network = (
        "[network]\nchannels = 8\nchannel_mult = [1]\nblocks = 1\nattention_resolutions = []\n"
        'embedding = "positional"\nembedding_scale = 1.0\nfir_kernel = []\n'
    )
    for name, more in {"bare": "", "more": "[noise]\np_mean = -0.4\n[loss]\nweighting = 'one'\n"}.items():
        (tmp_path / f"{name}.toml").write_text(f"[data]\nshape = [3, 16, 16]\n{network}{more}")
        config, _, said = imported(ict, tmp_path / "x.pt", tmp_path / name, "--config", tmp_path / f"{name}.toml")
        assert "It is a diffusion model" in said
        assert (config.curriculum.schedule, config.loss.distance, config.noise.p_std) == ("diffusion", "l2", 1.2)
        assert (config.noise.p_mean, config.loss.weighting) == ((-0.4, "one") if more else (-1.2, "edm"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_an_import_that_fails_leaves_nothing(
    ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The folder can be used again, and counts as no run, which would be trained from random weights."""
    settings = DDPMPP | {"model_channels": 8, "channel_mult": [1], "attn_resolutions": []}
    weights, _ = make_weights("SongUNet", settings)
    (tmp_path / "x.pkl").write_bytes(write_edm("SongUNet", settings, weights))

    def fail(path: Path, arrays: object) -> None:
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("ict_backends.runs.checkpoint.write_safetensors", fail)
        done = ict("import", "edm", tmp_path / "x.pkl", "--out", tmp_path / "run")
    assert done.code not in (0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pkl"]
    imported(ict, tmp_path / "x.pkl", tmp_path / "run")


def test_attention_is_at_the_levels_that_the_network_has(ict: Ict, tmp_path: Path) -> None:
    """EDM's default is a height of 16, which images of 24x24 have no level for: a run of them can be trained."""
    settings = DDPMPP | {"img_resolution": 24, "model_channels": 8, "attn_resolutions": [16]}
    weights, _ = make_weights("SongUNet", settings)
    (tmp_path / "x.pkl").write_bytes(write_edm("SongUNet", settings, weights))
    config, _, _ = imported(ict, tmp_path / "x.pkl", tmp_path / "run")
    assert config.network.attention_resolutions == ()
    np.savez(tmp_path / "images.npz", np.zeros((4, 24, 24, 3), np.uint8))
    options = [option for option in TINY if "network." not in option] + ["--dry-run"]
    data = f"--data={tmp_path / 'images.npz'}"
    done = ict("train", *options, data, "--init", tmp_path / "run", "--out", tmp_path / "tuned")
    assert done.code == 0, done.err


def test_an_imported_model_is_tuned(ict: Ict, tmp_path: Path) -> None:
    """With its own classes, with fewer, and without any, where no label is there to be dropped."""
    settings = DDPMPP | {"img_resolution": 8, "model_channels": 8, "label_dim": 3, "attn_resolutions": []}
    settings |= {"label_dropout": 0.1}
    weights, _ = make_weights("SongUNet", settings)
    (tmp_path / "x.pkl").write_bytes(write_edm("SongUNet", settings, weights))
    config, arrays, _ = imported(ict, tmp_path / "x.pkl", tmp_path / "run")
    assert config.train.label_dropout == 0.1
    rng, start = np.random.default_rng(0), [option for option in TINY if "network." not in option]
    for classes in (3, 2, 0):
        images = tmp_path / f"{classes}.npz"
        np.savez(images, rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), np.arange(12) % (classes or 3))
        out = tmp_path / f"tuned-{classes}"
        asked = "--conditional" if classes else "--set=network.num_classes=0"
        options = [asked, f"--data={images}", "--set=train.sample_every=0"]
        done = ict("train", *start, *options, "--init", tmp_path / "run", "--out", out)
        assert done.code == 0, done.err
        tuned = load_checkpoint(RunDir(out).latest_checkpoint())
        shape = tuned.params["embedding.labels.weight"].shape if classes else (8, 0)
        assert (tuned.step, shape) == (2, (8, classes))
        np.testing.assert_allclose(tuned.params["conv_in.weight"], arrays["conv_in.weight"], atol=0.05)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("SongUNet", {"encoder_type": "skip"}, "SongUNet that we do not have: its encoder_type is 'skip'"),
        ("SongUNet", {"decoder_type": "skip"}, "its decoder_type is 'skip'"),
        ("SongUNet", {"embedding_type": "zero"}, "its embedding_type is 'zero'"),
        ("SongUNet", {"channel_mult_noise": 2}, 'its channel_mult_noise is 2, and only 1, with "positional"'),
        ("SongUNet", {"channel_mult_emb": 2}, "its channel_mult_emb is 2, and only 4"),
        ("SongUNet", {"resample_filter": [1, 2, 4, 1]}, r"its resample_filter is \[1, 2, 4, 1\].* symmetric"),
        ("SongUNet", {"resample_filter": [1, 2, 1]}, "network.fir_kernel"),
        ("SongUNet", {"out_channels": 6}, "its out_channels is 6"),
        ("SongUNet", {"model_channels": 18}, "network.channels"),
        ("SongUNet", {"model_channels": 2**80}, "x.pkl"),
        ("SongUNet", {"num_blocks": 10**9}, "network.blocks"),
        ("SongUNet", {"img_resolution": "16"}, "x.pkl"),
        ("SongUNet", {"dropout": True}, "dropout = True, which is no number"),
        ("SongUNet", {"width": 3}, "its settings have width, which EDM's has not"),
        ("DhariwalUNet", {"model_channels": 16}, "its model_channels is 16.*an attention head"),
        ("DhariwalUNet", {"channel_mult": [3, 4], "attn_resolutions": [16, 8]}, r"channels of an attention head is \["),
        ("DhariwalUNet", {"encoder_type": "residual"}, "encoder_type, which EDM's has not"),
        ("UNet", {}, "holds EDMPrecond around UNet; what is imported is EDMPrecond around SongUNet or DhariwalUNet"),
    ],
)
def test_networks_that_we_do_not_have_are_named(
    refused: Refused, tmp_path: Path, kind: str, changes: dict[str, Any], says: str
) -> None:
    settings = (ADM if kind == "DhariwalUNet" else DDPMPP) | changes
    (tmp_path / "x.pkl").write_bytes(write_edm(kind, settings, {"map_layer0.weight": torch.zeros(2, 2)}))
    refused(1, says, "import", "edm", tmp_path / "x.pkl", "--out", tmp_path / "run")


def test_other_preconditioning_is_named(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(write_edm("SongUNet", DDPMPP, {"a": torch.zeros(2)}, outer="VPPrecond"))
    refused(1, "holds VPPrecond around SongUNet", "import", "edm", tmp_path / "x.pkl", "--out", tmp_path / "run")


def test_a_file_without_sigma_data_is_named(refused: Refused, tmp_path: Path) -> None:
    content = write_edm("SongUNet", DDPMPP, {"a": torch.zeros(2)}, sigma_data=None)
    (tmp_path / "x.pkl").write_bytes(content)
    refused(
        1, "x.pkl: its EDMPrecond has no sigma_data", "import", "edm", tmp_path / "x.pkl", "--out", tmp_path / "run"
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "missing: map_layer1.bias"),
        ("extra", "unknown: more.weight"),
        ("shape", r"map_layer1.bias is \[3\] and not \[32\]"),
        ("nan", "map_layer1.bias is not finite"),
        ("filter", r"down.conv0.resample_filter is another filter than the network's, \[1, 1\]"),
    ],
)
def test_arrays_that_do_not_fit_are_listed(refused: Refused, tmp_path: Path, name: str, says: str) -> None:
    settings = DDPMPP | {"model_channels": 8}
    weights, _ = make_weights("SongUNet", settings)
    changes = {"extra": ("more.weight", 2), "shape": ("map_layer1.bias", 3)}
    if name == "missing":
        del weights["map_layer1.bias"]
    elif name == "nan":
        weights["map_layer1.bias"][1] = torch.nan
    elif name == "filter":
        weights["enc.8x8_down.conv0.resample_filter"] = torch.ones(1, 1, 2, 2)
    else:
        weights[changes[name][0]] = torch.zeros(changes[name][1])
    (tmp_path / "x.pkl").write_bytes(write_edm("SongUNet", settings, weights))
    refused(1, says, "import", "edm", tmp_path / "x.pkl", "--out", tmp_path / "run")


def storage_bytes(kind: str = "FloatStorage", count: int = 4, claimed: int = 4, numbers: int = 4) -> bytes:
    """The bytes of a storage, whose counts may lie."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:  # the module `pickle` stands for the storage
            return ("storage", getattr(torch, kind), "7", "cpu", count, None) if value is pickle else None

    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, pickle, ["7"]):
        Pickler(stream, 2).dump(value)
    return stream.getvalue() + struct.pack("<q", claimed) + bytes(4 * numbers)


def tensor_of(content: bytes, offset: Any, shape: Any, strides: Any) -> Any:
    storage = Reduced(torch.storage._load_from_bytes, (content,))
    return Reduced(torch._utils._rebuild_tensor, (storage, offset, shape, strides))


GOOD = storage_bytes()
LIES: dict[str, tuple[Any, str]] = {
    "stride": (tensor_of(GOOD, 0, (2, 2), (100, 1)), "beyond the 4 numbers"),
    "offset": (tensor_of(GOOD, 1, (2, 2), (2, 1)), "beyond the 4 numbers"),
    "huge shape": (tensor_of(GOOD, 0, (10**12,), (1,)), "beyond the 4 numbers"),
    "huge shape of one number": (tensor_of(GOOD, 0, (10**12,), (0,)), "lie on one another"),
    "overlap": (tensor_of(GOOD, 0, (2, 2), (1, 1)), "lie on one another"),
    "negative stride": (tensor_of(GOOD, 3, (2, 2), (-2, 1)), "strides that no array has"),
    "negative offset": (tensor_of(GOOD, -1, (2,), (1,)), "strides that no array has"),
    "no numbers": (tensor_of(GOOD, 0, (2, "2"), (2, 1)), "strides that no array has"),
    "fewer strides": (tensor_of(GOOD, 0, (2, 2), (1,)), "strides that no array has"),
    "sixty dimensions": (tensor_of(GOOD, 0, (1,) * 60, (1,) * 60), "strides that no array has"),
    "no tuple": (tensor_of(GOOD, 0, 4, 1), "is no plain tensor"),
    "count": (tensor_of(storage_bytes(claimed=5), 0, (2,), (1,)), "claims 4 numbers"),
    "huge count": (tensor_of(storage_bytes(count=2**40, claimed=2**40), 0, (2,), (1,)), "claims 1,099,511,627,776"),
    "fewer numbers": (tensor_of(storage_bytes(numbers=3), 0, (2,), (1,)), "claims 4 numbers"),
    "integers": (tensor_of(storage_bytes("LongStorage"), 0, (2,), (1,)), "but a LongStorage"),
    "no storage": (tensor_of(b"", 0, (2,), (1,)), "x.pkl is no whole file"),
    "another call": (Reduced(zlib.compress, (b"1",)), "but a compress"),
    "a list": ([1, 2], "but a list"),
}


@pytest.mark.parametrize("name", LIES)
def test_tensors_that_lie_are_refused(refused: Refused, tmp_path: Path, name: str) -> None:
    tensor, says = LIES[name]
    content = write_edm("SongUNet", DDPMPP, {"a": torch.zeros(2)}, as_pickled=lambda _: tensor)
    (tmp_path / "x.pkl").write_bytes(content)
    refused(1, says, "import", "edm", tmp_path / "x.pkl", "--out", tmp_path / "run")


def stylegan() -> bytes:
    with their_modules():
        generators = {
            name: module(kind, {}) for name, kind in {"G": "Generator", "D": "D", "G_ema": "Generator"}.items()
        }
        return pickle.dumps(generators)


def zipped() -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream)
    return stream.getvalue()


class Touch:
    """What a pickle would execute."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path(TRACE),)


# Numbers of one hash, 0: each would be compared with all before it.
ALIKE = [i * (2**61 - 1) for i in range(1, 150_001)]
ALIKE_VALUES = [b"\x8a\x0a" + number.to_bytes(10, "little") for number in ALIKE]
ALIKE_ITEMS = b"".join(value + b"N" for value in ALIKE_VALUES)
ALIKE_ONE_BY_ONE = b"".join(value + b"Ns" for value in ALIKE_VALUES)

OTHERS: dict[str, tuple[bytes, str]] = {
    "of StyleGAN": (stylegan(), r"no member `ema`, but is a dict of G \(Generator\), D \(D\), G_ema \(Generator\)"),
    "numbers": (pickle.dumps({"ema": 3}), "ema is no module"),
    "list": (pickle.dumps([1]), "but is a list"),
    "code": (pickle.dumps({"ema": Touch()}), "ema is no module"),
    "code alone": (pickle.dumps(Touch()), "but is an empty dict|but is a touch"),
    "code in items": (pickle.dumps({Touch: 1}), "a key is a Global"),
    "zip": (zipped(), r"a zip archive, as torch writes them \(.pt\)"),
    "empty": (b"", "pickle exhausted before seeing STOP"),
    "noise": (b"\x00\x01noise" * 9, "is no whole file of EDM's"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "x.pkl"),
    "huge text": (b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"x.", "it ends before 1,125,899,906,842,624 bytes"),
    "huge bytes": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "it ends before"),
    "huge frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.", "but is an empty dict"),
    "deep lists": (b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".", "but is a list"),
    "deep tuples as a key": (b"\x80\x04})" + b"\x85" * 400_000 + b"K\x01s.", "a key is a tuple"),
    "keys of one hash": (b"\x80\x04}(" + ALIKE_ITEMS + b"u.", "more than 1,000 keys that are no text"),
    "keys of one hash, one by one": (b"\x80\x04}" + ALIKE_ONE_BY_ONE + b".", "keys that are no text"),
    "keys of one hash, at once": (b"\x80\x04(" + ALIKE_ITEMS + b"d.", "more than 1,000 keys that are no text"),
    "a set of one hash": (b"\x80\x04\x8f(" + ALIKE_ITEMS + b"\x90.", "but is a list"),
    "values numbered by one hash": (b"N" + b"".join(b"p%d\n" % number for number in ALIKE) + b".", "is a NoneType"),
    "deep tuples": (b"\x80\x04)" + b"\x85" * 400_000 + b".", "but is a tuple"),
    "endless": (b"\x80\x04" + b"N" * 3_000_000 + b".", "more than 500,000 steps"),
    "marks": (b"\x80\x04" + b"(" * 400_000 + b".", "is no whole file of EDM's"),
    "a registered class": (b"\x80\x04\x82\x01.", "the operation EXT1"),
    "a buffer": (b"\x80\x05\x97.", "the operation NEXT_BUFFER"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_refused_quickly(refused: Refused, tmp_path: Path, name: str) -> None:
    content, says = OTHERS[name]
    (tmp_path / "x.pkl").write_bytes(content)
    begin = time.process_time()
    refused(1, says, "import", "edm", tmp_path / "x.pkl", "--out", tmp_path / "run")
    assert time.process_time() - begin < 30


def test_modules_within_themselves_are_refused(refused: Refused, tmp_path: Path) -> None:
    """One module, many times over, by few bytes: 2^60 of them."""
    with their_modules():
        inner: Any = module("Linear", {})
        for _ in range(60):
            inner = module("UNetBlock", {}, inner={"a": inner, "b": inner})
        whole = module("EDMPrecond", {}, inner={"model": module("SongUNet", {}, DDPMPP, inner={"a": inner})})
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({"ema": whole}))
    refused(1, "more than 20,000 modules", "import", "edm", tmp_path / "x.pkl", "--out", tmp_path / "run")


def test_a_tensor_that_is_referred_to_many_times_is_refused_quickly(refused: Refused, tmp_path: Path) -> None:
    """200,000 numbers, 50,000 times over."""
    tensor = as_parameter(torch.zeros(200_000, dtype=torch.bfloat16))
    many = {f"x{i}": tensor for i in range(50_000)}
    with their_modules():
        network = module("SongUNet", many, DDPMPP)
        content = {"ema": module("EDMPrecond", {}, inner={"model": network}, sigma_data=0.5)}
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    begin = time.process_time()
    refused(
        1, "its arrays would be larger than the file", "import", "edm", tmp_path / "x.pkl", "--out", tmp_path / "run"
    )
    assert time.process_time() - begin < 10


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_is_refused(refused: Refused, tmp_path: Path, part: float) -> None:
    content = reference("edm_ddpmpp_open.pkl").read_bytes()
    (tmp_path / "x.pkl").write_bytes(content[: int(part * len(content))])
    refused(1, "is no whole file of EDM's", "import", "edm", tmp_path / "x.pkl", "--out", tmp_path / "run")


def test_the_options_are_checked(ict: Ict, refused: Refused, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    refused(1, "does not exist", "import", "edm", tmp_path / "no.pkl", *out)
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    refused(2, "describe its network with --config", "import", "edm", tmp_path / "x.pt", *out)
    config = tmp_path / "c.toml"
    config.write_text("[data]\nshape = [3, 16, 16]\n[network]\nnum_classes = 3\nchannels = 8\nchannel_mult = [1, 1]\n")
    refused(1, 'network.labels_at = "features"', "import", "edm", tmp_path / "x.pt", *out, "--config", config)
    config.write_text("[data]\nshape = [3, 16, 16]\n[network]\nchannels = 8\nchannel_mult = [1, 1]\n")
    says = ["does not fit the network: missing: dec.16x16_aux_conv.bias", "unknown: a"]
    refused(1, says, "import", "edm", tmp_path / "x.pt", *out, "--config", config)
    torch.save({"ema": {"generator": 3}}, tmp_path / "y.pt")
    refused(1, "must hold arrays by name", "import", "edm", tmp_path / "y.pt", *out, "--config", config)
    (tmp_path / "x.pkl").write_bytes(write_edm("SongUNet", DDPMPP, {"a": torch.zeros(2)}))
    refused(2, "--config is for state dicts", "import", "edm", tmp_path / "x.pkl", *out, "--config", config)


# --- mutated files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EDMSample]:
    return make_edm_samples(tmp_path_factory.mktemp("samples"))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["SongUNet", "DhariwalUNet"])
def test_mutated_files_are_refused_or_read(samples: dict[str, EDMSample], kind: str, protocol: int) -> None:
    """`bench/fuzz_readers.py` reads thousands."""
    sample = samples[f"EDM {kind}, protocol {protocol}"]
    assert sample.outcome(sample.content) == "unchanged"
    outcomes = [sample.outcome(mutate(sample.content, np.random.default_rng([1, i]))) for i in range(50)]
    assert outcomes.count("refused") > 25
