"""The commands as a user types them, on small real runs."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from command_line import Ict, Refused, assert_refusal
from PIL import Image
from tiny import TINY

from ict_backends.training import prefetch
from ict_backends.training.step_plan import StepPlan
from ict_cli.main import ict as ict_group
from ict_core import load_config, load_preset, preset_names
from ict_core.reference import sections, summarize_preset

CIFAR10 = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-train-jpeg.tar.xz"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_train_prints_and_saves_the_resolved_settings_and_leaves_pictures(ict: Ict, tmp_path: Path) -> None:
    result = ict("train", "--out", tmp_path / "run", *TINY, "--seed", 7)
    assert result.code == 0
    config = load_config(tmp_path / "run" / "config.toml")
    assert (config.train.seed, config.train.total_steps, config.network.channels) == (7, 2, 8)
    assert config.to_toml() in result.out
    picture = tmp_path / "run" / "samples" / "step_00000002.png"
    assert str(picture) in result.out
    assert pixels(picture).shape == (8 * 9 * 4, 8 * 9 * 4)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]


@pytest.mark.parametrize("group", [[], ["import"], ["edit"], ["export"]])
def test_a_group_alone_prints_its_help(ict: Ict, group: list[str]) -> None:
    alone, asked = ict(*group), ict(*group, "--help")
    assert alone.code in (0, 2)  # click 8.1 takes it for a request, later versions for a mistake
    assert (alone.out or alone.err).rstrip() == asked.out.rstrip()
    assert asked.out.count("\n") > 5


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_a_bar_and_a_file_gets_lines(
    ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    result = ict("train", "--out", tmp_path / "run", *TINY)
    for part in ("2/2", "N=21", "loss=", "images/s"):
        assert part in result.err
    assert ("\r" in result.err) == terminal
    if not terminal:
        lines = result.err.splitlines()
        assert [bool(re.fullmatch(r"step \d/2: N=\d+ loss=\S+ \d+ images/s, \d\d:\d\d left", x)) for x in lines] == [
            True,
            True,
            False,  # the warning that so short an average is of initial weights
        ]


def test_the_bar_moves_with_each_step(ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not only when a line of the log is due, which may be after minutes."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    original = prefetch.plan_step

    def plan_step(*arguments: object) -> StepPlan:
        time.sleep(0.15)  # bars are drawn every tenth of a second
        return original(*arguments)

    monkeypatch.setattr(prefetch, "plan_step", plan_step)
    result = ict("train", "--out", tmp_path / "run", *TINY, "--steps=5", "--set=train.log_every=100")
    shown = [int(number) for number in re.findall(r"(\d)/5 ", result.err)]
    assert set(shown) >= {0, 1, 2, 3}
    assert shown == sorted(shown)
    assert re.search(r"5/5 .*N=\d+ loss=", result.err)


def test_later_settings_win(ict: Ict, tmp_path: Path) -> None:
    """Preset < file < --set < flags."""
    file = tmp_path / "own.toml"
    file.write_text("[train]\nseed = 1\nbatch_size = 5\ntotal_steps = 50\nlearning_rate = 0.5\n")
    sets = ["--set", "train.batch_size=6", "--set", "train.total_steps=60"]
    result = ict("train", "--dry-run", "--config", file, *sets, "--steps", 70)
    settings = load_config(_written(tmp_path, result.out)).train
    assert (settings.seed, settings.learning_rate, settings.batch_size, settings.total_steps) == (1, 0.5, 6, 70)
    assert settings.ema_decay == load_preset("digits").train.ema_decay


def _written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "printed.toml"
    path.write_text(text)
    return path


def test_a_dry_run_writes_nothing(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    assert ict("train", "--dry-run", "--out", tmp_path / "run").code == 0
    assert ict("sample", digits_run, "--dry-run", "--out", tmp_path / "new" / "x.png").code == 0
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_numbered(ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits-torch-001", "digits-torch-002"):
        assert ict("train", *TINY).code == 0
        assert (tmp_path / "runs" / name / "config.toml").is_file()


def test_own_images_bring_their_own_shape(ict: Ict, tmp_path: Path, images_file: Path) -> None:
    result = ict("train", "--dry-run", "--data", images_file)
    assert "shape = [3, 8, 8]" in result.out


@pytest.mark.parametrize("memory", [(), ("--set=network.checkpoint=true",)])
def test_resume_finishes_a_stopped_run(ict: Ict, tmp_path: Path, memory: tuple[str, ...]) -> None:
    common = ["--set=train.checkpoint_every=1", *TINY]
    assert ict("train", "--out", tmp_path / "run", *common).code == 0
    last = tmp_path / "run" / "checkpoints" / "step_00000002"
    whole = (last / "state.safetensors").read_bytes()
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    result = ict("train", "--resume", "--out", tmp_path / "run", "--device=cpu", "--set=train.log_every=7", *memory)
    assert result.code == 0
    assert (last / "state.safetensors").read_bytes() == whole
    assert ict("train", "--resume", "--out", tmp_path / "run", *common).code == 0


def test_samples_do_not_depend_on_the_batch_size_and_do_on_the_seed(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    for name, extra in {"a": (), "b": ("--batch-size", 3), "c": ("--seed", 1), "d": ("--num", 5)}.items():
        extra = extra if "--num" in extra else (*extra, "--num", 10)
        assert ict("sample", digits_run, "--out", tmp_path / f"{name}.npz", *extra).code == 0
    a, b, c, d = (arrays(tmp_path / f"{name}.npz")["arr_0"].astype(int) for name in "abcd")
    assert a.shape == (10, 8, 8, 1)
    # One grey level: convolution libraries add in another order at another batch size.
    assert np.abs(a - b).max() <= 1
    assert np.abs(a[:5] - d).max() <= 1
    assert np.abs(a - c).max() > 50


def test_samples_go_into_a_grid_a_file_or_a_folder(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    for out in ("x.png", "x.npz", "folder"):
        assert ict("sample", digits_run, "--num", 6, "--out", tmp_path / out).code == 0
    images = arrays(tmp_path / "x.npz")["arr_0"]
    files = sorted((tmp_path / "folder").glob("*.png"))
    assert [f.name for f in files] == [f"{i:06d}.png" for i in range(6)]
    assert np.array_equal(np.stack([pixels(f) for f in files]), images[..., 0])
    assert pixels(tmp_path / "x.png")[0, 0] == images[0, 0, 0, 0]


def test_steps_sigmas_and_weights_change_the_samples(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    options = {"a": (), "b": ("--steps", 2), "c": ("--sigmas", "80,0.821"), "d": ("--sigmas", "80,5,0.5")}
    options["e"] = ("--weights", "raw")
    for name, extra in options.items():
        assert ict("sample", digits_run, "--num", 4, "--out", tmp_path / f"{name}.npz", *extra).code == 0
    a, b, c, d, e = (arrays(tmp_path / f"{name}.npz")["arr_0"] for name in "abcde")
    assert np.array_equal(b, c)
    assert all(not np.array_equal(x, y) for x, y in ((a, b), (b, d), (a, e)))


@pytest.mark.parametrize(
    ("extra", "expected"),
    [((), [0, 1, 2, 0, 1]), (("--labels", "2"), [2] * 5), (("--labels", "2,0"), [2, 0, 2, 0, 2])],
)
def test_labels_are_taken_in_turn_and_stored(
    ict: Ict, tmp_path: Path, labelled_run: Path, extra: tuple[str, ...], expected: list[int]
) -> None:
    assert ict("sample", labelled_run, "--num", 5, "--out", tmp_path / "x.npz", *extra).code == 0
    assert arrays(tmp_path / "x.npz")["arr_1"].tolist() == expected


def test_eval_prints_the_distance_and_what_the_data_allow(ict: Ict, digits_run: Path) -> None:
    result = ict("eval", digits_run, "--num", 100)
    assert result.code == 0
    assert "100 one-step samples against 1797 images" in result.out
    assert re.search(r"^  a perfect model would show about \d\.\d+ with as many samples$", result.out, re.M)
    without = ict("eval", digits_run, "--num", 100, "--no-halves")
    assert result.out.startswith(without.out)
    assert "perfect" not in without.out


@pytest.mark.parametrize("preset", preset_names())
def test_show_prints_settings_size_and_stages_of_presets(ict: Ict, preset: str) -> None:
    result = ict("show", preset)
    assert result.code == 0
    assert load_preset(preset).to_toml() in result.out
    assert "parameters: " in result.out
    assert f"..{load_preset(preset).train.total_steps - 1}" in result.out


def test_show_gives_the_cost_of_a_preset_and_the_authors_count(ict: Ict) -> None:
    lines = ict("show", "cifar10").out.splitlines()
    assert "parameters: 56,395,651; the authors' network of these sizes: 56,395,651" in lines
    assert "one forward pass: 42.5 GFLOP an image, two a multiplication and addition" in lines
    assert "one training step: 174 TFLOP, 1024 images of 4 forward passes each" in lines
    memory = (
        "weights 215.1 MiB, gradients 215.1 MiB, optimiser 430.3 MiB, averaged weights 215.1 MiB; in all 1,075.7 MiB"
    )
    assert f"memory: {memory}, beside activations and images" in lines
    assert "authors'" not in ict("show", "digits").out.split("parameters:")[1]


def test_the_tiny_cifar10_preset_trains_on_its_images(ict: Ict, tmp_path: Path) -> None:
    if not CIFAR10.is_file():
        pytest.skip(f"the CIFAR-10 images are not here: {CIFAR10}")
    with tarfile.open(CIFAR10) as archive:
        for member in itertools.islice((m for m in archive if m.isfile()), 8):
            archive.extract(member, tmp_path, filter="data")
    run = tmp_path / "run"
    start = ["train", "--preset=cifar10-tiny", f"--data={tmp_path / 'train'}", "--device=cpu"]
    done = ict(*start, f"--out={run}", "--steps=2", "--set=train.batch_size=2", "--set=train.log_every=1")
    assert done.code == 0, done.err
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert all(0 < loss < 1000 for loss in losses)
    assert pixels(run / "samples" / "step_00000002.png").std() > 10


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_show_says_what_a_backend_computes_on(ict: Ict, backend: str) -> None:
    said = f"computes with: {backend} "
    assert said not in ict("show", "digits").out
    result = ict("show", "digits", "--backend", backend, "--device", "cpu")
    assert result.code == 0
    assert said in result.out
    assert "cpu" in result.out.split(said)[1].splitlines()[0]


@pytest.mark.parametrize(
    "wrong", ["--backend torch --device warp", "--backend jax --device warp", "--device cpu", "--backend numpy"]
)
def test_show_refuses_a_backend_or_a_device_that_is_not_there(refused: Refused, wrong: str) -> None:
    refused(2, [], "show", "digits", *wrong.split())


def test_show_counts_what_the_network_has(ict: Ict, digits_run: Path) -> None:
    from ict_backends import load_backend

    result = ict("show", digits_run)
    module = load_backend("torch").load_model(digits_run, device="cpu").module
    count = sum(value.numel() for value in module.state_dict().values())
    assert f"parameters: {count:,}" in result.out


def test_show_lists_the_presets_with_a_sentence_each(ict: Ict) -> None:
    text = " ".join(ict("show").out.split())
    assert all(f"{name} {summarize_preset(name)}" in text for name in preset_names())


def test_show_prints_every_setting_with_default_range_meaning_and_source(ict: Ict) -> None:
    text = " ".join(ict("show", "--settings").out.split())
    assert "train.learning_rate = 0.0001 number, > 0; from iCT app. the learning rate, the same" in text
    assert 'network.embedding = "fourier" word, "fourier" or "positional"; from the authors\' CIFAR-10 networks' in text
    assert "data.flip = false true or false; from this software mirror each image" in text
    for section in sections():
        assert f"{section.title}: {section.about}" in text
        for s in section.settings:
            assert f" {section.name}.{s.name} = {s.default} " in text
            assert f"; from {s.source} {s.about}" in text


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("sample", ["sample.second_sigma"]),  # a section
        ("rho", ["noise.rho"]),
        ("noise.p_std", ["noise.p_std"]),
        ("MOMENTS", ["train.shard_weights", "train.betas"]),  # in descriptions
        ("lr", ["train.learning_rate"]),  # what others call it
    ],
)
def test_show_prints_the_settings_with_a_word(ict: Ict, word: str, names: list[str]) -> None:
    assert re.findall(r"^(\w+\.\w+) = ", ict("show", "--settings", word).out, re.M) == names


def test_show_refuses_words_that_no_setting_has(refused: Refused) -> None:
    refused(
        2, '--settings "qqq": no setting has that .* sections are data, network, noise', "show", "--settings", "qqq"
    )
    refused(2, "--settings and --plot exclude each other", "show", "--settings", "--plot=x.png")
    refused(2, "--settings and --backend exclude each other", "show", "--settings", "--backend=torch")


def mebibytes(pattern: str, text: str) -> float:
    match = re.search(pattern + r" ([\d,.]+) MiB", text)
    assert match, text
    return float(match[1].replace(",", ""))


def test_show_gives_the_size_of_a_checkpoint_and_the_space_of_a_run(ict: Ict, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sizes = ["--set=network.channels=48", "--set=teacher.decay=0.5", "--set=eval.every=2", "--set=eval.num=70"]
    assert ict("train", "--out", out, *TINY, *sizes).code == 0
    text = ict("show", out).out
    (tensors,) = out.glob("checkpoints/*/state.safetensors")
    assert mebibytes("a checkpoint:", text) == pytest.approx(tensors.stat().st_size / 2**20, rel=0.02)
    folder = sum(path.stat().st_size for path in tensors.parent.iterdir())
    assert mebibytes("; step_00000002 has", text) == pytest.approx(folder / 2**20, abs=0.05)
    files = [path.lstat().st_size for path in out.rglob("*") if path.is_file()]
    assert mebibytes("on disk:", text) == pytest.approx(sum(files) / 2**20, abs=0.05)
    assert f" in {len(files)} files, 2 checkpoints among them\n" in text
    assert "a checkpoint: 860.5 MiB (weights 215.1 MiB, optimiser 430.3 MiB, averaged" in ict("show", "cifar10").out


def test_show_draws_the_method(ict: Ict, tmp_path: Path) -> None:
    assert ict("show", "digits", "--plot", tmp_path / "p.png").code == 0
    picture = pixels(tmp_path / "p.png")
    assert picture.shape[0] > 500
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50


@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["eval"], ["show"]])
def test_every_command_has_help(ict: Ict, command: list[str]) -> None:
    result = ict(*command, "--help")
    assert result.code == 0
    assert result.out.startswith("Usage: ict")


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    """Every command, groups and theirs too, as the words after `ict`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        yield (*path, name)
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


@pytest.mark.parametrize("words", list(commands(ict_group)), ids=" ".join)
def test_the_help_of_every_command_has_two_examples_that_it_takes(ict: Ict, words: tuple[str, ...]) -> None:
    lines = ict(*words, "--help").out.partition("  Examples:\n")[2].splitlines()
    assert len(lines) >= 2
    for line in lines:
        start, *rest = shlex.split(line)
        assert (start, tuple(rest[: len(words)])) == ("ict", words)
        command: click.Command = ict_group
        while isinstance(command, click.Group):
            command = command.get_command(click.Context(command), rest.pop(0))
        command.make_context(line, rest)  # raises where an option, an argument or a value is wrong


def test_the_help_groups_the_commands(ict: Ict) -> None:
    parts = re.split(r"^(\w+):\n", ict("--help").out.partition("Options:")[2], flags=re.M)[1:]
    found = {title: re.findall(r"^  ([\w-]+)", body, re.M) for title, body in zip(parts[::2], parts[1::2], strict=True)}
    assert list(found) == ["Train", "Sample", "Measure", "Exchange"]
    assert [name for names in found.values() for name in names] == ict_group.list_commands(click.Context(ict_group))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("sampel", "no such command 'sampel'; did you mean sample\\?$"),
        ("search-sigma", "no such command 'search-sigma'; did you mean search-sigmas\\?$"),
        ("fly", "no such command 'fly'; `ict --help` lists them$"),
    ],
)
def test_a_wrong_name_of_a_command_is_refused_with_the_nearest(refused: Refused, word: str, says: str) -> None:
    refused(2, says, word)
    refused(2, says, word, "runs/mine", "--out=x.png")


@pytest.mark.parametrize("start", [[sys.executable, "-m", "ict_cli"], [str(Path(sys.executable).with_name("ict"))]])
def test_both_ways_to_start_it(start: list[str]) -> None:
    done = subprocess.run([*start, "show"], capture_output=True, text=True, check=True)
    assert "digits" in done.stdout
    failed = subprocess.run([*start, "show", "digitz"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert_refusal(failed.stderr)


def test_the_jax_backend_takes_the_same_commands(ict: Ict, refused: Refused, tmp_path: Path, digits_run: Path) -> None:
    """Trains, samples what torch has trained to the same pictures, and says the same of what is wrong."""
    run, jax = tmp_path / "run", ("--backend", "jax")
    assert ict("train", *jax, "--out", run, *TINY).code == 0
    assert ict("train", *jax, "--out", run, *TINY, "--resume").code == 0
    assert pixels(run / "samples" / "step_00000002.png").shape == (8 * 9 * 4, 8 * 9 * 4)
    for backend in ("torch", "jax"):
        out = tmp_path / f"{backend}.npz"
        assert ict("sample", digits_run, "--backend", backend, "--device", "cpu", "--num", 4, "--out", out).code == 0
    a, b = (arrays(tmp_path / f"{backend}.npz")["arr_0"].astype(int) for backend in ("torch", "jax"))
    assert np.abs(a - b).max() <= 1
    refused(2, "--device tpu is not available", "train", *jax, "--out", tmp_path / "x", "--device", "tpu")
