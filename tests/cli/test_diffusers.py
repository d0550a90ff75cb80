"""`ict export diffusers` and `ict import diffusers`, against the library itself."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Ict, Refused
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors

from ict_backends import load_backend
from ict_backends.exchange.diffusers_names import nearest_timestep
from ict_backends.exchange.importing import weights_run
from ict_backends.networks.families import parameter_shapes
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir
from ict_core import Config, karras_sigmas
from ict_core.settings import build_config, merge

ADM = {
    "data": {"source": "unknown", "shape": [3, 16, 16]},
    "network": {
        "family": "adm",
        "channels": 32,
        "channel_mult": [1, 2],
        "blocks": 1,
        "attention_resolutions": [8],
        "head_channels": 16,
    },
    "curriculum": {"s0": 10, "s1": 160},
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def make_run(path: Path, **sections: dict[str, Any]) -> Config:
    """A run whose weights are random, those too that a new network has at zero."""
    config, rng = build_config(merge([ADM, sections])), np.random.default_rng(0)

    def draw(shape: Sequence[int]) -> np.ndarray:
        scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.3
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    weights_run({name: draw(shape) for name, shape in parameter_shapes(config).items()}, config, path)
    return config


def load_pipeline(folder: Path) -> Any:
    from diffusers import ConsistencyModelPipeline

    pipeline = ConsistencyModelPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def both_sample(
    pipeline: Any, run: Path, timesteps: Sequence[int], *, backend: str = "torch"
) -> tuple[np.ndarray, np.ndarray]:
    """Two images by the pipeline and by us from the same noise: [2, c, h, w] in [-1, 1] each."""
    model = load_backend(backend).load_model(run, device="cpu")
    config = model.config
    first = torch.randn(2, *config.data.shape, generator=torch.Generator().manual_seed(1))
    labels = [1, 0] if config.network.num_classes else None
    theirs = pipeline(
        batch_size=2,
        class_labels=labels,
        num_inference_steps=None,
        timesteps=list(timesteps),
        latents=first,
        generator=torch.Generator().manual_seed(2),
        output_type="np",
    ).images
    generator = torch.Generator().manual_seed(2)  # the pipeline draws from it after each step
    noises = [first, *(torch.randn(first.shape, generator=generator) for _ in timesteps[1:])]
    levels = karras_sigmas(pipeline.scheduler.config.num_train_timesteps)[::-1]
    sigmas = [float(levels[t]) for t in reversed(timesteps)]
    ours = model.sample(np.stack([z.numpy() for z in noises]), sigmas, None if labels is None else np.array(labels))
    return 2 * theirs.transpose(0, 3, 1, 2) - 1, ours


NETWORKS = {
    "conditional": {"scale_shift": True, "num_classes": 3},
    "unconditional": {"attention_resolutions": [16, 8], "blocks": 2},
    "convolutions": {"resblock_updown": False, "num_classes": 3, "head_channels": 32},
    "three levels": {"channel_mult": [1, 2, 3], "attention_resolutions": [16, 4], "dropout": 0.3},
    "one level": {"channel_mult": [1], "attention_resolutions": []},
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_pipeline_samples_what_we_do(ict: Ict, tmp_path: Path, network: dict[str, object]) -> None:
    make_run(tmp_path / "run", network=network)
    done = ict("export", "diffusers", tmp_path / "run", "--out", tmp_path / "pipe-1.0")
    assert (done.code, done.err) == (0, "")
    pipeline = load_pipeline(tmp_path / "pipe-1.0")
    for timesteps in ([0], [90, 0], [150, 100, 40, 0]):
        theirs, ours = both_sample(pipeline, tmp_path / "run", timesteps)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        assert ours.std() > 0.1
    theirs, ours = both_sample(pipeline, tmp_path / "run", [90, 0], backend="jax")
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_printed_timesteps_are_the_second_level(ict: Ict, tmp_path: Path) -> None:
    config = make_run(tmp_path / "run")
    done = ict("export", "diffusers", tmp_path / "run", "--out", tmp_path / "pipe")
    number = nearest_timestep(config, config.sample.second_sigma)
    assert f"timesteps=[{number}, 0]" in done.out
    distances = abs(karras_sigmas(161)[::-1] ** (1 / 7) - 0.821 ** (1 / 7))
    assert distances[number] == distances.min()
    assert (nearest_timestep(config, 80.0), nearest_timestep(config, 0.002)) == (0, 160)


def test_raw_weights_can_be_exported(ict: Ict, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    folder = RunDir(tmp_path / "run").latest_checkpoint()
    checkpoint = load_checkpoint(folder)
    from ict_backends.runs.checkpoint import save_checkpoint

    doubled = checkpoint._replace(params={name: 2 * a for name, a in checkpoint.params.items()})
    save_checkpoint(RunDir(tmp_path / "run"), doubled, keep=0)
    found = []
    for weights in ("ema", "raw"):
        assert ict("export", "diffusers", tmp_path / "run", "--out", tmp_path / weights, "--weights", weights).code == 0
        found.append(load_file(tmp_path / weights / WEIGHTS)["conv_in.weight"])
    np.testing.assert_array_equal(2 * found[0], found[1])


def test_a_diffusion_model_is_exported_with_a_warning(ict: Ict, tmp_path: Path) -> None:
    for name, schedule in {"model": "doubling", "diffusion": "diffusion"}.items():
        make_run(tmp_path / name, curriculum={"schedule": schedule})
        done = ict("export", "diffusers", tmp_path / name, "--out", tmp_path / f"pipe-{name}")
        assert done.code == 0
        assert done.err.count("\n") == (name == "diffusion"), done.err
        assert done.err.startswith("Warning: the model is a diffusion model") == (name == "diffusion")


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_what_was_exported_is_imported_as_it_was(ict: Ict, tmp_path: Path, network: dict[str, object]) -> None:
    config = make_run(tmp_path / "run", network=network, noise={"sigma_max": 50.0})
    ict("export", "diffusers", tmp_path / "run", "--out", tmp_path / "pipe")
    done = ict("import", "diffusers", tmp_path / "pipe", "--out", tmp_path / "back")
    assert (done.code, done.err) == (0, "")
    found = RunDir(tmp_path / "back").load_config()
    assert build_config({"network": vars(found.network) | {"dropout_resolution": 16}}).network == config.network
    assert (found.noise, found.data.shape, found.curriculum) == (config.noise, config.data.shape, config.curriculum)
    before, after = (load_checkpoint(RunDir(tmp_path / r).latest_checkpoint()).ema for r in ("run", "back"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A pipeline made and saved by the library, with the settings of the authors' released model in small."""
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        num_class_embeds=5,
        block_out_channels=[32, 64],
        attention_head_dim=8,
        down_block_types=["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=32,
        upsample_type="resnet",
        downsample_type="resnet",
    )
    pipeline = ConsistencyModelPipeline(unet, CMStochasticIterativeScheduler(clip_denoised=False))
    pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_pipeline_of_the_library_is_imported(ict: Ict, tmp_path: Path, saved: Path) -> None:
    done = ict("import", "diffusers", saved, "--out", tmp_path / "run")
    assert (done.code, done.err) == (0, "")
    config = RunDir(tmp_path / "run").load_config()
    assert (config.network.scale_shift, config.network.num_classes, config.network.head_channels) == (True, 5, 8)
    assert (config.network.attention_resolutions, config.curriculum.s1) == ((8,), 39)
    theirs, ours = both_sample(load_pipeline(saved), tmp_path / "run", [22, 0])
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_weights_in_torchs_own_format_are_imported(ict: Ict, tmp_path: Path, saved: Path) -> None:
    arrays = load_file(saved / WEIGHTS)
    torch.save({name: torch.tensor(a).half() for name, a in arrays.items()}, (saved / WEIGHTS).with_suffix(".bin"))
    (saved / WEIGHTS).unlink()
    assert ict("import", "diffusers", saved, "--out", tmp_path / "run").code == 0
    found = load_checkpoint(RunDir(tmp_path / "run").latest_checkpoint()).ema["conv_in.weight"]
    np.testing.assert_array_equal(found, arrays["conv_in.weight"].astype(np.float16).astype(np.float32))


def as_bin(folder: Path, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    arrays = load_safetensors(folder / WEIGHTS)
    torch.save({name: make(a) for name, a in arrays.items()}, (folder / WEIGHTS).with_suffix(".bin"))
    (folder / WEIGHTS).unlink()


def saved_again(folder: Path, **options: Any) -> None:
    """What the library itself writes with other options."""
    pipeline = load_pipeline(folder)
    shutil.rmtree(folder)
    pipeline.save_pretrained(folder, **options)


def with_bom(folder: Path) -> None:
    for file in folder.rglob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


# What is done to a folder -> the precision that the weights have after it, and the file that they come from.
VARIANTS: dict[str, tuple[Callable[[Path], object], torch.dtype, str]] = {
    "half": (lambda f: store(f, torch.float16), torch.float16, "safetensors"),
    "bfloat16": (lambda f: store(f, torch.bfloat16), torch.bfloat16, "safetensors"),
    "a variant": (lambda f: saved_again(f, variant="fp16"), torch.float32, "fp16.safetensors"),
    "parts": (lambda f: saved_again(f, max_shard_size="300KB"), torch.float32, "safetensors.index.json"),
    "parts of a variant": (
        lambda f: saved_again(f, max_shard_size="300KB", variant="fp16"),
        torch.float32,
        "safetensors.index.fp16.json",
    ),
    "bin": (lambda f: saved_again(f, safe_serialization=False), torch.float32, "bin"),
    "parts of bin": (
        lambda f: saved_again(f, safe_serialization=False, max_shard_size="300KB"),
        torch.float32,
        "bin.index.json",
    ),
    "parameters": (lambda f: as_bin(f, torch.nn.Parameter), torch.float32, "bin"),
    "a byte order mark": (with_bom, torch.float32, "safetensors"),
    "settings of the library's own": (lambda f: change(f, UNET, _name_or_path="x"), torch.float32, "safetensors"),
}


@pytest.mark.parametrize(("make", "dtype", "ending"), VARIANTS.values(), ids=VARIANTS)
def test_folders_in_every_form_are_imported(
    ict: Ict, tmp_path: Path, saved: Path, make: Callable[[Path], object], dtype: torch.dtype, ending: str
) -> None:
    before = load_safetensors(saved / WEIGHTS)["conv_in.weight"]
    make(saved)
    done = ict("import", "diffusers", saved, "--out", tmp_path / "run")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0].endswith(f" from {saved / WEIGHTS.removesuffix('safetensors')}{ending}")
    found = load_checkpoint(RunDir(tmp_path / "run").latest_checkpoint()).ema["conv_in.weight"]
    np.testing.assert_array_equal(found, before.to(dtype).float().numpy())


def test_full_precision_is_taken_before_a_variant(ict: Ict, tmp_path: Path, saved: Path) -> None:
    whole = (saved / WEIGHTS).read_bytes()
    store(saved, torch.float16)
    move(saved, "fp16")
    (saved / WEIGHTS).write_bytes(whole)
    assert ict("import", "diffusers", saved, "--out", tmp_path / "run").code == 0
    found = load_checkpoint(RunDir(tmp_path / "run").latest_checkpoint()).ema["conv_in.weight"]
    np.testing.assert_array_equal(found, load_file(saved / WEIGHTS)["conv_in.weight"])


def test_a_network_alone_is_refused_as_one(refused: Refused, tmp_path: Path, saved: Path) -> None:
    says = "unet is a UNet2DModel alone, without model_index.json and the scheduler's settings"
    refused(1, says, "import", "diffusers", saved / "unet", "--out", tmp_path / "run")


def change(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
FAULTS = {
    "another pipeline": (lambda f: change(f, "model_index.json", _class_name="DDPMPipeline"), "is a DDPMPipeline"),
    "another scheduler": (
        lambda f: change(f, "model_index.json", scheduler=["diffusers", "DDPMScheduler"]),
        "its scheduler must be a CMStochasticIterativeScheduler",
    ),
    "no index": (lambda f: (f / "model_index.json").unlink(), "it has no model_index.json"),
    "broken index": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json cannot be read"),
    "a list": (lambda f: (f / UNET).write_text("[]"), "unet/config.json holds no settings"),
    "no settings": (lambda f: (f / UNET).unlink(), "it has no unet/config.json"),
    "another embedding": (lambda f: change(f, UNET, time_embedding_type="fourier"), "must be 'positional', not"),
    "another epsilon": (lambda f: change(f, UNET, norm_eps=1e-6), "norm_eps of the unet must be 1e-05, not 1e-06"),
    "other blocks": (lambda f: change(f, UNET, down_block_types=["SkipDownBlock2D"] * 2), "are none of ADM's"),
    "another resampling": (lambda f: change(f, UNET, upsample_type="conv"), "are none of ADM's"),
    "unknown": (lambda f: change(f, UNET, fancy=True), "unet has settings that have no place in ADM: fancy"),
    "silent": (lambda f: change(f, UNET, sample_size=None), "sample_size of the unet must be given, not None"),
    "of a wrong type": (lambda f: change(f, UNET, block_out_channels=["a", "b"]), "its settings are none of ADM's"),
    "a wrong head": (lambda f: change(f, UNET, attention_head_dim=None), "attention_head_dim of the unet must be"),
    "an odd width": (lambda f: change(f, UNET, block_out_channels=[24, 48]), "its settings are none of ADM's"),
    "noisier": (lambda f: change(f, SCHEDULER, s_noise=1.01), "s_noise of the scheduler must be 1, not 1.01"),
    "one level": (lambda f: change(f, SCHEDULER, num_train_timesteps=1), "num_train_timesteps of the scheduler"),
    "other widths": (lambda f: change(f, UNET, block_out_channels=[32, 96]), "does not fit the network: down_blocks"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no weights"),
    "truncated": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:5000]), "cannot be read"),
    "a pointer": (lambda f: (f / WEIGHTS).write_text(POINTER), "is only a pointer of Git LFS; run `git lfs pull`"),
    "a pointer for the index": (lambda f: (f / "model_index.json").write_text(POINTER), "only a pointer of Git LFS"),
    "deep settings": (lambda f: (f / UNET).write_text('{"a":' * 50_000), "unet/config.json cannot be read"),
    "float8": (lambda f: store(f, torch.float8_e4m3fn), "is stored as F8_E4M3, which is not read; store float32"),
    "several variants": (lambda f: [move(f, name) for name in ("fp16", "ema")], "several variants of its weights"),
    "a shard outside": (
        lambda f: shard(f, "../x.safetensors"),
        "names '../x.safetensors', which is no file of weights",
    ),
    "a shard that is missing": (lambda f: shard(f, "x.safetensors"), "unet/x.safetensors cannot be read: No such"),
    "no map": (lambda f: shard(f, None), "does not say by weight_map"),
    "missing array": (lambda f: rewrite(f, **{"conv_out.bias": None}), "missing: conv_out.bias"),
    "another array": (lambda f: rewrite(f, more=np.zeros(2, np.float32)), "unknown: more"),
    "nan": (lambda f: rewrite(f, **{"conv_out.bias": np.full(3, np.nan, np.float32)}), "conv_out.bias is not finite"),
}


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def store(folder: Path, dtype: torch.dtype) -> None:
    """Store the weights in another type of numbers."""
    arrays = load_safetensors(folder / WEIGHTS)
    save_safetensors({name: a.to(dtype) for name, a in arrays.items()}, folder / WEIGHTS)


def move(folder: Path, variant: str) -> None:
    """Make the weights a variant, beside others that there may be."""
    arrays = next((folder / "unet").glob("*.safetensors"))
    new = folder / WEIGHTS.replace(".safetensors", f".{variant}.safetensors")
    new.write_bytes(arrays.read_bytes())
    (folder / WEIGHTS).unlink(missing_ok=True)


def shard(folder: Path, name: str | None) -> None:
    """Leave an index that names one file of weights for all arrays; None for an index without names."""
    names = dict.fromkeys(load_file(folder / WEIGHTS), name)
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))


def rewrite(folder: Path, **changed: np.ndarray | None) -> None:
    arrays = load_file(folder / WEIGHTS) | changed
    save_file({name: a for name, a in arrays.items() if a is not None}, folder / WEIGHTS)


class Touch:
    """What a pickle would execute."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_code_in_the_weights_is_refused_and_not_executed(refused: Refused, tmp_path: Path, saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    torch.save({"conv_in.weight": Touch(tmp_path / "touched")}, (saved / WEIGHTS).with_suffix(".bin"))
    refused(1, "is refused", "import", "diffusers", saved, "--out", tmp_path / "run")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("spoil", "says"), FAULTS.values(), ids=FAULTS)
def test_every_fault_of_a_folder_is_one_line_and_leaves_nothing(
    refused: Refused, tmp_path: Path, saved: Path, spoil: Callable[[Path], object], says: str
) -> None:
    spoil(saved)
    assert refused(1, re.escape(says), "import", "diffusers", saved, "--out", tmp_path / "run").out == ""


def test_a_folder_that_is_not_there_is_refused(refused: Refused, tmp_path: Path) -> None:
    refused(1, [], "import", "diffusers", tmp_path / "nowhere", "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ({"channel_mult": [2, 1]}, r"network.channel_mult = [2, 1] cannot be exported"),
        ({"embedding_scale": 500.0}, "network.embedding_scale = 500 cannot be exported"),
        ({"min_group_channels": 4}, "network.min_group_channels = 4 cannot be exported"),
        ({"normalize_qkv": True}, "network.normalize_qkv = true cannot be exported"),
    ],
)
def test_networks_that_the_library_does_not_have_are_refused(
    refused: Refused, tmp_path: Path, network: dict[str, object], says: str
) -> None:
    make_run(tmp_path / "run", network=network)
    refused(2, re.escape(says), "export", "diffusers", tmp_path / "run", "--out", tmp_path / "pipe")


def test_ncsnpp_has_no_twin_there(refused: Refused, tmp_path: Path, digits_run: Path) -> None:
    says = r"an NCSN\+\+ network cannot be exported: diffusers has no twin of it"
    refused(2, says, "export", "diffusers", digits_run, "--out", tmp_path / "pipe")


def test_a_folder_in_use_is_left_alone(refused: Refused, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "mine").write_text("x")
    refused(2, [], "export", "diffusers", tmp_path / "run", "--out", tmp_path / "pipe")
    assert [p.name for p in (tmp_path / "pipe").iterdir()] == ["mine"]
