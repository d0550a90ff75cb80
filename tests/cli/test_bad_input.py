"""What a user can get wrong: one clear line, the right exit code, no traceback, and nothing on disk changed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from command_line import Ict, Refused, assert_refusal, contents
from PIL import Image
from tiny import TINY

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def run_copy(tmp_path: Path, digits_run: Path) -> Path:
    """A run of one's own, to spoil."""
    return Path(shutil.copytree(digits_run, tmp_path / "copy"))


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


@pytest.mark.parametrize(
    ("arguments", "patterns"),
    [
        (["--preset", "digitz"], ['unknown preset "digitz"', "did you mean digits", "there are .*digits"]),
        (["--backend", "tensorflow"], ["unknown backend 'tensorflow'", "there are .*torch"]),
        (["--set", "train.batchsize=3"], ["unknown key train.batchsize", "did you mean train.batch_size"]),
        (["--set", "trian.seed=3"], [r"unknown section \[trian\]", "did you mean train"]),
        (["--set", "seed=3"], ["--set", "seed=3", "SECTION.KEY=VALUE"]),
        (["--set", "train.seed=abc"], ["train.seed must be an integer", '"abc"']),
        (["--set", "train.seed=1.5"], ["train.seed must be an integer", "1.5"]),
        (["--set", "train.learning_rate=inf"], ["train.learning_rate must be finite"]),
        (["--set", "train.learning_rate=0"], ["train.learning_rate must be > 0, not 0"]),
        (["--set", "data.flip=1"], ["data.flip must be a boolean"]),
        (["--set", "network.channel_mult=2"], ["network.channel_mult must be a list of integers"]),
        (["--set", "curriculum.s0=20", "--set", "curriculum.s1=10"], ["curriculum.s1 must be >= curriculum.s0 = 20"]),
        (["--set", "curriculum.s0=0"], ["curriculum.s0 must be >= 1, not 0"]),
        (["--set", "noise.sigma_min=0"], ["noise.sigma_min must be > 0, not 0"]),
        (["--set", "noise.sigma_max=-1"], ["noise.sigma_max must be > noise.sigma_min = 0.002, not -1"]),
        (["--set", "noise.sigma_min=80"], ["noise.sigma_max must be > noise.sigma_min = 80"]),
        (["--set", "noise.p_std=0"], ["noise.p_std must be > 0"]),
        (["--set", "sample.second_sigma=100"], ["sample.second_sigma must be in", "not 100"]),
        (["--set", "train.batch_size=0"], ["train.batch_size must be >= 1 and <= 1000000, not 0"]),
        (
            ["--set", "train.precision=half"],
            ['train.precision must be "float32", "tf32", "bf16" or "fp16", not "half"'],
        ),
        (
            ["--set", "train.compile=true", "--set", "train.shard_weights=true"],
            ["train.compile must be false with train.shard_weights = true, not true"],
        ),
        (
            ["--set", "noise.rho=1e-300"],
            ["noise with curriculum.s1 = 160: n = 161 levels .* are not distinct"],
        ),
        (["--set", "noise.p_mean=1e9"], ["noise with curriculum.s1 = 160: p_mean = 1.* put no mass between"]),
        (["--steps", "0"], ["train.total_steps must be >= 1 and <= 2147483647, not 0"]),
        (["--seed", "-1"], ["train.seed must be in", "not -1"]),
        (["--set", "network.dropout=1"], [r"network.dropout must be in \[0, 1\)"]),
        (["--set", "network.channels=10"], ["network.channels must be a multiple of 4"]),
        (["--set", "network.channels=132"], ["network.channels = 132", "132 channels", "multiples of 32"]),
        (["--set", "network.channel_mult=[1,1,1,1,1]"], ["data.shape", "divides by 16", "5 levels"]),
        (["--set", "data.shape=[1,8,4]"], ["images of .1, 8, 8.", "data.shape is set to .1, 8, 4."]),
        (
            ["--set", "network.attention_resolutions=[16,4]"],
            [r"network.attention_resolutions = \[16, 4\]: .*the heights 8, 4, for images of 8x8$"],
        ),
        (["--device", "warp"], ["--device warp", "allowed"]),
        (["--device", "cuda:77"], ["--device cuda:77"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--sample-every", "3"], ["--sample-every"]),
        (["--config", "absent.toml"], ["--config absent.toml", "No such file"]),
        (["--resume"], ["--resume needs --out"]),
    ],
)
def test_settings_are_refused(
    refused: Refused, tmp_path: Path, arguments: list[str], patterns: str | list[str]
) -> None:
    code = 1 if "data.shape=[1,8,4]" in arguments else 2
    out = [] if "--resume" in arguments else ["--out", tmp_path / "run"]
    refused(code, patterns, "train", *out, *arguments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[train", "not a TOML file"),
        ("seed = 1", "must stand in a section"),
        ("[train]\nsed = 1", "unknown key train.sed"),
    ],
)
def test_a_bad_settings_file_is_refused(refused: Refused, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    refused(2, says, "train", "--config", file, "--out", tmp_path / "run")


def save_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def bad_data(folder: Path, how: str) -> Path:
    path = folder / how
    match how:
        case "empty":
            path.mkdir()
        case "mixed":
            save_png(path / "a.png", PIXELS[0])
            save_png(path / "b.png", PIXELS[0, :4])
        case "unreadable":
            save_png(path / "a.png", PIXELS[0])
            (path / "a.png").write_bytes((path / "a.png").read_bytes()[:50])
        case "float.npy":
            np.save(path, PIXELS / 255)
        case "wide.npy":
            np.save(path, PIXELS[:, :, :7])
        case "odd.npy":
            np.save(path, PIXELS[:, :7, :7])
        case "unlabelled.npy":
            np.save(path, PIXELS)
        case "labels.npz":
            np.savez(path, images=PIXELS, labels=np.arange(6))
    return path


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        ("missing", 1, "missing does not exist"),
        ("empty", 1, "holds no images"),
        ("mixed", 1, "a.png is 8x8 RGB and b.png is 4x8 RGB"),
        ("unreadable", 1, "a.png cannot be read"),
        ("float.npy", 1, "must be uint8.*not float64"),
        ("wide.npy", 2, "images of 8x7, and the preset .* is for multiples of 2: --size 16x14 --crop center"),
        ("odd.npy", 2, "is for multiples of 2: --size 16"),
    ],
)
def test_data_are_refused(refused: Refused, tmp_path: Path, how: str, code: int, says: str) -> None:
    refused(code, says, "train", "--data", bad_data(tmp_path, how), "--out", tmp_path / "run", *TINY)


def test_labels_of_the_data_must_fit_the_network(refused: Refused, tmp_path: Path) -> None:
    command = ["train", "--out", tmp_path / "run", *TINY, "--set", "network.num_classes=5", "--data"]
    refused(1, ["has no labels", "num_classes = 5"], *command, bad_data(tmp_path, "unlabelled.npy"))
    refused(1, "num_classes = 5 is not the number of classes of data .*, 6", *command, bad_data(tmp_path, "labels.npz"))


@pytest.mark.parametrize("command", ["train", "sample"])
@pytest.mark.parametrize(("backend", "framework"), [("torch", "torch"), ("jax", "jax"), ("jax", "optax")])
def test_a_backend_that_is_not_installed_names_its_extra(
    refused: Refused,
    digits_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    framework: str,
    command: str,
) -> None:
    run = [digits_run] if command == "sample" else []
    monkeypatch.setitem(sys.modules, framework, None)
    says = [f"backend '{backend}' is not installed", rf"pip install 'ict\[{backend}\]'"]
    refused(2, says, command, *run, "--out", tmp_path / "x.png", "--backend", backend)


def test_a_backend_that_does_not_load_is_not_said_to_be_missing(
    refused: Refused, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module = importlib.import_module

    def fail(name: str, package: str | None = None) -> object:
        if name == "torch":
            raise ImportError("failed to map segment from shared object")
        return import_module(name, package)

    monkeypatch.setattr(importlib, "import_module", fail)
    says = "backend 'torch' cannot be loaded: failed to map segment"
    refused(2, says, "sample", digits_run, "--out", tmp_path / "x.png")


def test_data_need_their_extra(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    refused(2, r"ict\[digits\]", "train", "--out", tmp_path / "run")


def test_a_plot_needs_its_extra_and_a_png(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(2, [r"--plot .*x\.pdf must end in \.png"], "show", "digits", "--plot", tmp_path / "x.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(2, [r"ict\[plot\]"], "show", "digits", "--plot", tmp_path / "x.png")


def test_a_folder_with_another_run_or_other_files_is_left_alone(
    refused: Refused, tmp_path: Path, run_copy: Path
) -> None:
    refused(2, ["--out .*copy holds another run", "--resume"], "train", "--out", run_copy, *TINY)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    refused(2, "not an empty folder", "train", "--out", tmp_path / "other", *TINY)
    refused(2, "not an empty folder", "train", "--out", tmp_path / "other" / "thesis.tex", *TINY)
    refused(2, "not an empty folder", "sample", run_copy, "--out", tmp_path / "other")


def test_resuming_with_other_settings_or_data_is_refused(refused: Refused, tmp_path: Path, run_copy: Path) -> None:
    resume = ["train", "--resume", "--out", run_copy]
    refused(2, ["train.batch_size is 4 and not 3"], *resume, "--set", "train.batch_size=3")
    refused(2, ["network.channels is 8 and not 24"], *resume, "--preset", "digits")
    np.save(tmp_path / "other.npy", PIXELS[..., 0])
    refused(1, "other data", *resume, "--data", tmp_path / "other.npy")
    refused(1, "does not exist", "train", "--resume", "--out", tmp_path / "absent")


def test_starting_from_another_run_needs_one_that_fits(refused: Refused, tmp_path: Path, run_copy: Path) -> None:
    start = ["train", *TINY, "--out", tmp_path / "run", "--init"]
    refused(2, "--resume and --init exclude each other", *start, run_copy, "--resume")
    family = r'network\.family must be "ncsnpp", the architecture of --init \S+/\S+, not "adm"'
    refused(2, family, *start, run_copy, "--preset=digits", "--set=network.family=adm")
    refused(1, "does not exist", *start, tmp_path / "absent")
    refused(
        1,
        ["--init", r"conv_in.weight is \[8, 1, 3, 3\] and not \[12, 1"],
        *start,
        run_copy,
        "--set",
        "network.channels=12",
    )


def test_what_is_no_run_is_refused(refused: Refused, tmp_path: Path, run_copy: Path) -> None:
    out = ["--out", tmp_path / "x.png"]
    refused(1, "absent does not exist", "sample", tmp_path / "absent", *out)
    refused(2, 'unknown preset "absent"', "show", "absent")
    (tmp_path / "folder").mkdir()
    refused(1, "folder is not a run: it has no config.toml", "sample", tmp_path / "folder", *out)
    refused(1, "folder is not a run: it has no config.toml", "show", tmp_path / "folder")
    refused(2, "folder is no run: say by --data what to compare with", "eval", tmp_path / "folder")
    (run_copy / "config.toml").write_text("[train]\nsed = 1\n")
    refused(1, ["copy", "unknown key train.sed"], "sample", run_copy, *out)


@pytest.mark.parametrize("command", ["sample {run} --out {out}", "eval {run}"])
def test_a_run_without_checkpoints_is_refused(refused: Refused, tmp_path: Path, run_copy: Path, command: str) -> None:
    shutil.rmtree(run_copy / "checkpoints")
    words = [word.format(run=run_copy, out=tmp_path / "x.png") for word in command.split()]
    refused(1, "copy has no checkpoints", *words)


@pytest.mark.parametrize("how", ["truncated", "foreign", "other network"])
def test_a_bad_checkpoint_is_refused(
    refused: Refused, tmp_path: Path, run_copy: Path, labelled_run: Path, how: str
) -> None:
    checkpoint = newest(run_copy)
    tensors = checkpoint / "state.safetensors"
    if how == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-100])
        says = ["step_00000030 is damaged"]
    elif how == "foreign":
        (checkpoint / "state.json").write_text(json.dumps({"format": "other", "step": 3}))
        says = ["step_00000030 has format 'other'", "ict-checkpoint-1"]
    else:
        shutil.rmtree(checkpoint)
        shutil.copytree(newest(labelled_run), checkpoint)
        says = ["config.toml has other settings than step_00000030", r"data.shape is \[1, 8, 8\] and was \[3, 8, 8\]"]
        refused(1, says, "sample", run_copy, "--out", tmp_path / "x.png")
        state = checkpoint / "state.json"  # as an earlier version wrote it, without the settings
        kept = {name: value for name, value in json.loads(state.read_text()).items() if name in ("step", "sha256")}
        state.write_text(json.dumps(kept))
        says = ["does not fit the network", "unknown: embedding.labels.weight", r"conv_in.weight is \[8, 3, 3, 3\]"]
    refused(1, says, "sample", run_copy, "--out", tmp_path / "x.png")
    refused(1, says, "train", "--resume", "--out", run_copy)


@pytest.mark.parametrize(
    ("labels", "says"),
    [("3", "3 is not in 0..2"), ("0,-1", "-1 is not in 0..2"), ("cat", "must be integers"), ("", "must be integers")],
)
def test_labels_are_refused(refused: Refused, tmp_path: Path, labelled_run: Path, labels: str, says: str) -> None:
    refused(2, ["--labels", says], "sample", labelled_run, "--out", tmp_path / "x.png", "--labels", labels)


def test_labels_for_an_unconditional_model_are_refused(refused: Refused, tmp_path: Path, digits_run: Path) -> None:
    refused(2, ["--labels 1", "unconditional"], "sample", digits_run, "--out", tmp_path / "x.png", "--labels", 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sigmas", "80,1,2"], "must fall"),
        (["--sigmas", "80,80"], "must fall"),
        (["--sigmas", "81"], r"must lie in \[0.002, 80\]; 81 does not"),
        (["--sigmas", "80,0.001"], "0.001 does not"),
        (["--sigmas", "80,-1"], "-1 does not"),
        (["--sigmas", "80,nan"], "finite"),
        (["--sigmas", "80,x"], "x"),
        (["--sigmas", ""], "--sigmas"),
        (["--steps", "2", "--sigmas", "80,1"], "exclude each other"),
        (["--steps", "3"], "--steps 3 needs its levels: --sigmas 80,"),
        (["--steps", "0"], "--steps"),
        (["--num", "0"], "--num"),
        (["--batch-size", "0"], "--batch-size"),
        (["--seed", "-1"], "--seed"),
        (["--weights", "mean"], "--weights"),
        (["--backend", "tensorflow"], "unknown backend"),
        (["--device", "warp"], "--device warp"),
    ],
)
def test_sampling_options_are_refused(
    refused: Refused, tmp_path: Path, digits_run: Path, arguments: list[str], says: str
) -> None:
    refused(2, says, "sample", digits_run, "--out", tmp_path / "x.png", *arguments)


def test_outputs_of_samples_are_checked_before_the_work(refused: Refused, tmp_path: Path, digits_run: Path) -> None:
    refused(2, ["--out .*x.jpg must end in .png or .npz"], "sample", digits_run, "--out", tmp_path / "x.jpg")
    (tmp_path / "d.png").mkdir()
    refused(2, "is a folder", "sample", digits_run, "--out", tmp_path / "d.png")
    (tmp_path / "file").write_text("")
    refused(1, ["file", "Not a directory|File exists"], "sample", digits_run, "--out", tmp_path / "file" / "x.png")
    refused(2, "--out", "sample", digits_run)


def test_eval_needs_images_like_the_runs(refused: Refused, tmp_path: Path, digits_run: Path) -> None:
    np.save(tmp_path / "rgb.npy", PIXELS)
    np.save(tmp_path / "few.npy", PIXELS[:3, ..., 0])
    refused(
        1, ["model's images are 8x8 grey", "of the data 8x8 RGB"], "eval", digits_run, "--data", tmp_path / "rgb.npy"
    )
    refused(1, "gives 3 images; pixel-fd needs 65 at least", "eval", digits_run, "--data", tmp_path / "few.npy")
    refused(2, "--num", "eval", digits_run, "--num", 1)


def test_an_output_that_cannot_be_made_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(1, ["file", "Not a directory|File exists"], "train", "--out", tmp_path / "file" / "run", *TINY)
    refused(1, "/proc/run", "train", "--out", "/proc/run", *TINY)


def limited(*arguments: object, size: int) -> subprocess.CompletedProcess[str]:
    """Run a command that can write no file larger than `size` bytes, as on a disk that fills up.

    It limits itself: doing so from here, between fork and exec, would fork this process, in which JAX may be running.
    """
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    command = [sys.executable, "-c", f"{limit}; import sys; from ict_cli.main import run; run(sys.argv[1:])"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def assert_failed_after_progress(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert_refusal(done.stderr.splitlines(keepends=True)[-1])


def test_a_disk_that_fills_up_loses_nothing_that_was_there(tmp_path: Path, run_copy: Path) -> None:
    before = contents(run_copy)
    done = limited("sample", run_copy, "--out", tmp_path / "x.npz", "--num", "200", size=5_000)
    assert_failed_after_progress(done)
    assert not (tmp_path / "x.npz").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    # The settings and pictures fit, the checkpoint does not.
    done = limited("train", "--out", tmp_path / "run", *TINY, size=50_000)
    assert_failed_after_progress(done)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert contents(run_copy) == before


def test_debug_shows_the_traceback(ict: Ict, tmp_path: Path) -> None:
    from ict_cli.main import run

    with pytest.raises(ValueError, match="unknown preset"):
        run(["train", "--preset", "digitz", "--debug"])


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--out", ["train"]),
        ("--data", ["train"]),
        ("--config", ["train"]),
        ("--init", ["train"]),
        ("--out", ["sample", "RUN"]),
        ("--json", ["eval", "RUN"]),
        ("--features", ["eval", "RUN"]),
        ("--plot", ["show"]),
        ("--out", ["edit", "denoise", "RUN", "--sigma=1", "--image=x.png"]),
        ("--out", ["export", "diffusers", "RUN"]),
        ("--out", ["ablate", "five-changes"]),
    ],
)
@pytest.mark.parametrize("value", ["-", ""])
def test_a_dash_and_an_empty_name_are_no_files(
    refused: Refused,
    digits_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    arguments: list[str],
    value: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(digits_run) if word == "RUN" else word for word in arguments]
    refused(2, [f"'{option}'", f'"{value}" names no'], *words, option, value)


def test_every_option_of_a_path_takes_the_users_home_for_a_tilde() -> None:
    """Where the shell has left it, as after = or in quotes."""
    from ict_cli.main import _COMMANDS, ict
    from ict_cli.options import PATH, SOURCE

    commands = [ict.get_command(click.Context(ict), name) for name in _COMMANDS]
    commands += [each for group in commands if isinstance(group, click.Group) for each in group.commands.values()]
    parameters = [parameter for command in commands for parameter in command.params]
    assert not [p for p in parameters if isinstance(p.type, click.Path) and p.type is not PATH]
    assert {"out", "run", "json_file", "config_file", "init"} <= {p.name for p in parameters if p.type is PATH}
    assert {p.name for p in parameters if p.name in ("data", "features") and p.type is not SOURCE} == set()


def test_a_tilde_is_the_users_home(
    ict: Ict, refused: Refused, tmp_path: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs").symlink_to(digits_run.parent)
    run = f"~/runs/{digits_run.name}"
    assert ict("sample", run, "--out=~/new/x.PNG", "--num=2", "--device=cpu").code == 0
    assert (tmp_path / "new" / "x.PNG").read_bytes().startswith(b"\x89PNG")
    assert ict("sample", run, "--out=~/new/x.NPZ", "--num=2", "--device=cpu").code == 0
    with np.load(tmp_path / "new" / "x.NPZ") as file:
        assert file["arr_0"].shape == (2, 8, 8, 1)
    refused(1, f"{tmp_path / 'none.npz'} does not exist", "train", "--data=~/none.npz", "--out=~/other")


def test_attention_that_earlier_versions_took_and_left_out_is_still_read(ict: Ict, run_copy: Path) -> None:
    file = run_copy / "config.toml"
    text = file.read_text().replace("attention_resolutions = []", "attention_resolutions = [64]")
    file.write_text(text)
    assert "[64]" in text
    for state in run_copy.glob("checkpoints/*/state.json"):  # as those versions wrote it
        known = json.loads(state.read_text())
        state.write_text(json.dumps({key: known[key] for key in ("format", "step", "sha256")}))
    assert ict("train", "--resume", f"--out={run_copy}", "--device=cpu", "--steps=31").code == 0
    assert ict("sample", run_copy, f"--out={run_copy / 'x.png'}", "--num=2", "--device=cpu").code == 0


def test_a_first_level_far_below_the_largest_is_warned_of(ict: Ict, digits_run: Path, tmp_path: Path) -> None:
    draw = ("sample", digits_run, f"--out={tmp_path / 'x.png'}", "--num=2", "--device=cpu", "--dry-run")
    low, near = ict(*draw, "--sigmas=20,1"), ict(*draw, "--sigmas=60,1")
    assert (low.code, near.code) == (0, 0)
    assert "Warning: --sigmas 20,1: the first level is far below 80 (noise.sigma_max)" in low.err
    assert "Warning" not in near.err
