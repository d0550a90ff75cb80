"""`ict sample`: large sets are continued and shared, classes chosen, steps shown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused, contents
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ict_backends import load_backend
from ict_backends.environment import local_rank, share_of_work
from ict_backends.errors import OutOfMemoryError, UsageError
from ict_backends.protocols import Model
from ict_backends.randomness import image_labels, image_noises
from ict_backends.runs import checkpoint
from ict_backends.runs.checkpoint import read_digest
from ict_backends.runs.folder import RunDir
from ict_backends.sampling import files
from ict_backends.sampling.batches import proportional_labels, sample_batches, trajectory
from ict_backends.sampling.class_grid import caption, class_grid
from ict_core import multistep_sample

FAST = ("--num", 10, "--batch-size", 3, "--device", "cpu")


def samples(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["arr_0"]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the command stop after some batches, as when it is killed: nothing is tidied up."""

    def after(batches: int) -> None:
        left = batches

        def draw(*args: object, **options: object) -> Iterator[np.ndarray]:
            nonlocal left
            for images in sample_batches(*args, **options):
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
                yield images

        monkeypatch.setattr("ict_backends.sampling.batches.sample_batches", draw)

    return after


def test_an_interrupted_folder_goes_on(
    ict: Ict,
    refused: Refused,
    tmp_path: Path,
    digits_run: Path,
    interrupt: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert ict("sample", digits_run, "--out", whole, *FAST).code == 0
    interrupt(2)
    assert ict("sample", digits_run, "--out", out, *FAST).code == 130
    done = contents(out)
    assert len(done) == 7  # six images, and what they are
    monkeypatch.undo()
    for changed in (("--seed", 1), ("--num", 9), ("--sigmas", "80,1"), ("--weights", "raw")):
        refused(2, "holds other samples", "sample", digits_run, "--out", out, *FAST, *changed)
    # What is there already is not drawn again.
    (out / "000001.png").write_bytes(b"kept")
    (out / ".000002.png.123456789.tmp").write_bytes(b"of a process that was killed")
    assert ict("sample", digits_run, "--out", out, *FAST).code == 0
    assert contents(out) == contents(whole) | {"000001.png": b"kept"}


@pytest.fixture
def no_more_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("an image was drawn")

    monkeypatch.setattr("ict_backends.torch.sample.LoadedModel.sample", fail)


@pytest.mark.parametrize("name", ["out", "out.npz"])
def test_what_is_finished_is_recognised(
    ict: Ict, tmp_path: Path, digits_run: Path, name: str, request: pytest.FixtureRequest
) -> None:
    command = ("sample", digits_run, "--out", tmp_path / name, *FAST)
    assert ict(*command).code == 0
    before = contents(tmp_path)
    request.getfixturevalue("no_more_drawing")
    again = ict(*command)
    assert again.code == 0, again.err
    assert "10 images" in again.out
    assert contents(tmp_path) == before


def test_an_npz_of_another_command_is_kept(ict: Ict, refused: Refused, tmp_path: Path, digits_run: Path) -> None:
    """And so is one that was changed; one that was removed is drawn again."""
    out = tmp_path / "x.npz"
    draw = ("sample", digits_run, "--out", out, *FAST)
    assert ict(*draw).code == 0
    whole = out.read_bytes()
    refused(2, r"holds other samples \(num is 10 and not 11; seed is 0 and not 1\)", *draw, "--seed", 1, "--num", 11)
    out.write_bytes(b"changed")
    refused(2, "x.npz is there already, and not as this command wrote it; choose another name", *draw)
    out.unlink()
    assert ict(*draw).code == 0
    assert out.read_bytes() == whole


def test_a_finished_folder_can_be_extended(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    options = ("--batch-size", 3, "--device", "cpu")
    for num in (4, 7):
        assert ict("sample", digits_run, "--out", tmp_path / "out", "--num", num, *options).code == 0
    assert ict("sample", digits_run, "--out", tmp_path / "whole", "--num", 7, *options).code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_interrupted_npz_goes_on(
    ict: Ict, tmp_path: Path, labelled_run: Path, interrupt: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.npz", tmp_path / "out.npz"
    assert ict("sample", labelled_run, "--out", whole, *FAST).code == 0
    interrupt(2)
    assert ict("sample", labelled_run, "--out", out, *FAST).code == 130
    assert not out.exists()
    parts = tmp_path / ".out.npz.parts"
    assert sorted(contents(parts)) == [".ict-sample.json", "00000000-00000002.npy", "00000003-00000005.npy"]
    monkeypatch.undo()
    # Another batch size will do.
    assert ict("sample", labelled_run, "--out", out, *FAST, "--batch-size", 2).code == 0
    np.testing.assert_allclose(samples(out).astype(int), samples(whole).astype(int), atol=1)
    with np.load(out) as file:
        np.testing.assert_array_equal(file["arr_1"], np.arange(10) % 3)
    assert not parts.exists()


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
def test_a_damaged_part_of_an_interrupted_npz_is_drawn_again(
    tmp_path: Path, damage: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    out, recipe = tmp_path / "x.npz", {"seed": 0}
    for rank in (0, 1):
        sink = files.open_sink(out, 4, recipe)
        sink.write([2 * rank, 2 * rank + 1], np.full((2, 1, 2, 2), rank, np.uint8))
    part = tmp_path / ".x.npz.parts" / "00000002-00000003.npy"
    part.write_bytes(part.read_bytes()[:-1] if damage is None else damage)
    drawer = Drawer(7)
    assert files.draw_into(files.open_sink(out, 4, recipe), drawer, None, batch=2)
    assert drawer.drawn == [2, 3]
    assert samples(out)[:, 0, 0, 0].tolist() == [0, 0, 7, 7]
    assert capfd.readouterr().err == f"Warning: {part} is damaged and is drawn again\n"


@pytest.mark.parametrize("name", ["x.npz", "folder"])
def test_no_process_takes_output_that_was_removed_for_complete(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    first = files.open_sink(out, 2, {"seed": 0})
    assert files.draw_into(first, Drawer(0), None, batch=2, world=2)
    assert files.open_sink(out, 2, {"seed": 0}, rank=1) is None
    if name == "folder":
        (out / "000001.png").unlink()
    else:
        out.unlink()
    assert files.open_sink(out, 2, {"seed": 0}, rank=1) is not None


def test_samples_are_of_the_checkpoint_that_their_recipe_names(
    ict: Ict, tmp_path: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a run that is training writes another one meanwhile."""
    run, digest = Path(shutil.copytree(digits_run, tmp_path / "run")), checkpoint.read_digest
    assert ict("sample", run, "--out", tmp_path / "before", *FAST).code == 0

    def write_another(folder: Path) -> str:
        found, latest = digest(folder), RunDir(run).latest_checkpoint()
        state = checkpoint.load_checkpoint(latest)
        other = {name: array + 1 for name, array in state.ema.items()}
        checkpoint.save_checkpoint(RunDir(run), state._replace(step=state.step + 1, ema=other), keep=0)
        return found

    monkeypatch.setattr(checkpoint, "read_digest", write_another)
    assert ict("sample", run, "--out", tmp_path / "during", *FAST).code == 0
    assert len(RunDir(run).checkpoints()) > len(RunDir(digits_run).checkpoints())
    assert contents(tmp_path / "during") == contents(tmp_path / "before")


def test_a_file_that_ends_too_early_is_no_interruption(
    ict: Ict, tmp_path: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*arguments: object, **options: object) -> None:
        raise EOFError("No data left in file")

    monkeypatch.setattr(files, "open_sink", end)
    result = ict("sample", digits_run, "--out", tmp_path / "x.npz", *FAST)
    assert (result.code, result.err.strip()) == (
        1,
        "Error: a file that was being read ends too early; --debug shows where",
    )


@pytest.mark.parametrize("name", ["out.npz", "folder"])
def test_processes_share_the_work(ict: Ict, tmp_path: Path, digits_run: Path, name: str) -> None:
    alone, out = tmp_path / f"alone-{name}", tmp_path / name
    assert ict("sample", digits_run, "--out", alone, *FAST).code == 0
    command = [sys.executable, "-m", "ict_cli", "sample", str(digits_run), "--out", str(out), *map(str, FAST)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    both = [subprocess.Popen(command, env=env | {"RANK": str(r)}, stderr=subprocess.PIPE, text=True) for r in (1, 0)]
    try:
        errors = [process.communicate(timeout=100)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], errors
    if name == "folder":
        assert contents(out) == contents(alone)
    else:
        np.testing.assert_array_equal(samples(out), samples(alone))
    assert f".{name}.done" in [path.name for path in tmp_path.glob(".*")]
    assert not [path for path in tmp_path.rglob(".*") if path.suffix in (".tmp", ".parts")]


class Drawer:
    """Draws images that are as bright as the number of the process, and remembers which."""

    def __init__(self, rank: int) -> None:
        self.rank, self.drawn = rank, []

    def __call__(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        self.drawn += indices
        if indices:
            yield np.full((len(indices), 1, 2, 2), self.rank, np.uint8)


@pytest.mark.parametrize("name", ["x.npz", "folder"])
def test_each_process_draws_its_share_and_the_first_finishes(tmp_path: Path, name: str) -> None:
    def begin(rank: int, out: str = name) -> files.Sink | None:
        return files.open_sink(tmp_path / out, 7, {"seed": 0}, rank=rank)

    drawers = Drawer(0), Drawer(1)
    late, first = begin(1), begin(0)
    assert not files.draw_into(late, drawers[1], None, batch=2, rank=1, world=2)
    assert first.missing() == [0, 1, 4, 5]
    assert files.draw_into(first, drawers[0], None, batch=2, rank=0, world=2)
    assert [drawer.drawn for drawer in drawers] == [[0, 1, 4, 5], [2, 3, 6]]
    assert begin(1) is None  # it came when all was done
    assert begin(1, "other.npz") is not None
    if name == "x.npz":
        np.testing.assert_array_equal(samples(tmp_path / name)[:, 0, 0, 0], [0, 0, 1, 1, 0, 0, 1])


def test_what_another_process_does_not_draw_the_first_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(rank: int, seed: int) -> files.Sink | None:
        return files.open_sink(tmp_path / "y.npz", 9, {"seed": seed}, rank=rank)

    monkeypatch.setattr(files, "_PATIENCE_SECONDS", 0.0)
    drawer = Drawer(0)
    assert files.draw_into(begin(0, seed=0), drawer, None, batch=3, rank=0, world=2)
    assert drawer.drawn == [0, 1, 2, 6, 7, 8, 3, 4, 5]
    # The mark of a finished run stops no process of another.
    with pytest.raises(UsageError, match="holds other samples"):
        begin(1, seed=1)


def test_a_dry_run_finds_what_is_in_the_way(ict: Ict, refused: Refused, tmp_path: Path, digits_run: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    refused(2, "is not an empty folder", "sample", digits_run, "--out", tmp_path / "full", "--dry-run")
    assert ict("sample", digits_run, "--out", tmp_path / "new", "--dry-run").code == 0
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("rank", "size", "expected"),
    [
        (None, None, (0, 1)),
        ("2", "4", (2, 4)),
        ("0", None, None),
        (None, "2", None),
        ("2", "2", None),
        ("x", "2", None),
    ],
)
def test_the_share_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, size: str | None, expected: tuple[int, int] | None
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    if expected:
        assert share_of_work() == expected
    else:
        with pytest.raises(Exception, match="RANK = .* and WORLD_SIZE = .* must both be set"):
            share_of_work()


class Small:
    """A model whose device holds three images."""

    limit = 3

    def __init__(self, model: Model) -> None:
        self.config, self._model, self.batches = model.config, model, []

    def sample(
        self,
        noises: np.ndarray,
        sigmas: Sequence[float],
        labels: np.ndarray | None,
        *,
        clip_steps: bool,
        guidance: float,
        solver: str,
    ) -> np.ndarray:
        self._hold(noises.shape[1])
        return self._model.sample(noises, sigmas, labels, clip_steps=clip_steps, guidance=guidance, solver=solver)

    def consistency(
        self, x: np.ndarray, sigma: np.ndarray, labels: np.ndarray | None, *, guidance: float
    ) -> np.ndarray:
        self._hold(len(x))
        return self._model.consistency(x, sigma, labels, guidance=guidance)

    def _hold(self, images: int) -> None:
        if images > self.limit:
            raise OutOfMemoryError(f"{images} images are too many")
        self.batches.append(images)


def test_batches_that_do_not_fit_are_halved(digits_run: Path) -> None:
    model = Small(load_backend("torch").load_model(digits_run, device="cpu"))
    found = np.concatenate(list(sample_batches(model, range(10), sigmas=[80.0], seed=0, batch=8)))
    assert model.batches == [2, 2, 2, 2, 2]
    expected = np.concatenate(list(sample_batches(model._model, range(10), sigmas=[80.0], seed=0)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    model.limit = 0
    with pytest.raises(OutOfMemoryError, match="1 images are too many"):
        list(sample_batches(model, range(2), sigmas=[80.0], seed=0))


def test_trajectories_are_drawn_in_batches_that_fit(digits_run: Path) -> None:
    """As the search for levels is, by the same function."""
    model = Small(load_backend("torch").load_model(digits_run, device="cpu"))
    found = trajectory(model, 7, sigmas=[80.0, 2.0], seed=0, batch=5)
    assert model.batches == [2, 2, 2, 1] * 2
    np.testing.assert_allclose(found, trajectory(model._model, 7, sigmas=[80.0, 2.0], seed=0), atol=1e-4)


def test_devices_take_their_parts_of_a_batch(labelled_run: Path) -> None:
    """Two copies of the network on one device, as they would be on two."""
    import copy

    from ict_backends.torch.sample import LoadedModel

    one = load_backend("torch").load_model(labelled_run, device="cpu")
    two = LoadedModel(one.config, one.module, (copy.deepcopy(one.module),))
    rng = np.random.default_rng(0)
    for b in (1, 2, 5):
        x, sigma = rng.standard_normal((b, 3, 8, 8)), np.linspace(0.1, 2, b)
        labels = np.arange(b) % 3
        np.testing.assert_allclose(two.consistency(x, sigma, labels), one.consistency(x, sigma, labels), atol=1e-5)
        noises = rng.standard_normal((2, b, 3, 8, 8)).astype(np.float32)
        np.testing.assert_allclose(
            two.sample(noises, [80.0, 1.0], labels), one.sample(noises, [80.0, 1.0], labels), atol=1e-5
        )
    seen = []
    two.replicas[0].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    two.sample(noises, [80.0, 1.0], labels)
    assert seen == [2, 2]


def test_classes_can_be_balanced_chosen_or_random(
    ict: Ict, refused: Refused, tmp_path: Path, labelled_run: Path
) -> None:
    found = {}
    for labels in ("balanced", "random", "2,0", "1"):
        out = tmp_path / f"{labels}.npz"
        assert ict("sample", labelled_run, "--out", out, *FAST, "--labels", labels, "--seed", 4).code == 0
        with np.load(out) as file:
            found[labels] = file["arr_1"].tolist()
    assert found["balanced"] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert found["2,0"] == [2, 0] * 5
    assert found["1"] == [1] * 10
    assert found["random"] == image_labels(4, range(10), 3).tolist()
    assert image_labels(4, [7], 3)[0] == found["random"][7]
    assert np.bincount(image_labels(0, range(3000), 3)).min() > 900
    refused(2, '"data" or "random"', "sample", labelled_run, "--out", tmp_path / "x.npz", "--labels", "both")


def test_classes_can_be_in_the_proportions_of_the_data(
    ict: Ict, refused: Refused, tmp_path: Path, labelled_run: Path
) -> None:
    """Which the run's folder knows, unless an earlier version wrote it."""
    run = tmp_path / "run"
    shutil.copytree(labelled_run, run)
    record = json.loads((run / "data.json").read_text())
    assert record["class_counts"] == [4, 4, 4]
    (run / "data.json").write_text(json.dumps(record | {"class_counts": [1, 0, 3]}))
    out = tmp_path / "x.npz"
    assert ict("sample", run, "--out", out, "--num", 9, "--labels", "data", "--device", "cpu").code == 0
    with np.load(out) as file:
        assert file["arr_1"].tolist() == [2, 0, 2, 2, 2, 0, 2, 2, 2]
    del record["class_counts"]
    (run / "data.json").write_text(json.dumps(record))
    refused(2, "--labels data: the run does not say", "sample", run, "--out", tmp_path / "y.npz", "--labels", "data")


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any), num=st.integers(1, 60))
def test_labels_are_in_proportion_from_the_first_to_the_last(counts: list[int], num: int) -> None:
    labels = proportional_labels(np.array(counts), num)
    for n in range(1, num + 1):
        share = np.array(counts) / sum(counts)
        assert np.abs(np.bincount(labels[:n], minlength=len(counts)) - n * share).max() < 2
    if len({c for c in counts if c}) == 1:  # equal classes take turns
        assert labels.tolist() == [np.flatnonzero(counts)[i % np.count_nonzero(counts)] for i in range(num)]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_released_samplers_can_be_imitated(ict: Ict, tmp_path: Path, digits_run: Path, backend: str) -> None:
    """Each option changes what it says; together they are the released sampler, written out."""
    model, found = load_backend(backend).load_model(digits_run, device="cpu"), {}
    options = ("sample", digits_run, "--backend", backend, "--device", "cpu", "--num", 6, "--sigmas", "80,20")
    for flags in ((), ("--clip-steps",), ("--truncate",), ("--clip-steps", "--truncate")):
        assert ict(*options, *flags, "--out", tmp_path / f"{len(found)}.npz").code == 0
        with np.load(tmp_path / f"{len(found)}.npz") as file:
            found[flags] = file["arr_0"][..., 0]
    assert len({images.tobytes() for images in found.values()}) == 4
    noises = image_noises(0, range(6), 2, model.config.data.shape)
    first = np.clip(model.consistency(80.0 * noises[0], np.full(6, 80.0)), -1, 1)
    second = model.consistency(first + np.sqrt(20.0**2 - 0.002**2) * noises[1], np.full(6, 20.0))
    expected = ((second.clip(-1, 1) + 1) * 127.5).clip(0, 255).astype(np.uint8)[:, 0]
    differ = found["--clip-steps", "--truncate"].astype(int) - expected
    assert np.abs(differ).max() <= 1  # where the float is an integer but for rounding
    assert np.mean(differ != 0) < 0.01


def test_a_folder_goes_on_by_the_same_recipe_only(ict: Ict, refused: Refused, tmp_path: Path, digits_run: Path) -> None:
    """Recipes of earlier versions say nothing of clipping and truncating, which these did not do."""
    options = ("sample", digits_run, "--num", 5, "--device", "cpu", "--out", tmp_path / "x")
    assert ict(*options, "--dry-run").code == 0
    recipe = {"weights": "ema", "sha256": read_digest(RunDir(digits_run).latest_checkpoint()), "num": 5}
    recipe |= {"sigmas": [80.0], "seed": 0, "labels": None}
    (tmp_path / "x").mkdir(exist_ok=True)
    (tmp_path / "x" / ".ict-sample.json").write_text(json.dumps(recipe))
    refused(2, "truncate is False and not True", *options, "--truncate")
    assert ict(*options).code == 0


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_numbers_of_any_kind_are_taken(labelled_run: Path, backend: str) -> None:
    """Integers as levels, lists as labels."""
    model = load_backend(backend).load_model(labelled_run, device="cpu")
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    whole = model.consistency(x, np.array([80, 2]), [0, 2])
    np.testing.assert_array_equal(whole, model.consistency(x, np.array([80.0, 2.0]), np.array([0, 2])))
    (images,) = sample_batches(model, range(2), sigmas=[80], seed=0, labels=[1, 2])
    assert images.shape == (2, 3, 8, 8)


def test_each_process_of_a_machine_has_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_rank() == 3
    assert load_backend("jax").check_device("auto").size == 1
    monkeypatch.setenv("LOCAL_RANK", "x")
    with pytest.raises(UsageError, match="LOCAL_RANK = x must be a number"):
        load_backend("jax").check_device("auto")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_trajectory_ends_in_the_sample(
    ict: Ict, refused: Refused, tmp_path: Path, digits_run: Path, backend: str
) -> None:
    model = load_backend(backend).load_model(digits_run, device="cpu")
    sigmas = [80.0, 2.0, 0.5]
    seen = trajectory(model, 4, sigmas=sigmas, seed=0)
    assert seen.shape == (6, 4, 1, 8, 8)
    (expected,) = sample_batches(model, range(4), sigmas=sigmas, seed=0)
    np.testing.assert_allclose(np.clip(seen[-1], -1, 1), expected, atol=1e-4)
    assert seen[0].std() == pytest.approx(80, rel=0.2)
    # The second input is the first result with noise of the second level.
    assert (seen[2] - seen[1]).std() == pytest.approx(2, rel=0.2)
    replayed = iter(seen[1::2])
    zs = [np.zeros_like(seen[0])] * 3
    np.testing.assert_allclose(multistep_sample(lambda *_: next(replayed), zs, sigmas, clip=False), seen[-1])
    out = tmp_path / "t.png"
    options = ("--num", 4, "--sigmas", "80,2,0.5", "--trajectory", "--device", "cpu", "--backend", backend)
    assert ict("sample", digits_run, "--out", out, *options).code == 0
    with Image.open(out) as picture:
        assert picture.size == (6 * 36, 4 * 36)
    refused(2, "must end in .png for --trajectory", "sample", digits_run, "--out", tmp_path / "t.npz", *options)


def test_the_manifest_says_what_was_asked_for(
    ict: Ict, refused: Refused, tmp_path: Path, digits_run: Path, interrupt: Callable[[int], None]
) -> None:
    command = ("sample", digits_run, "--out", tmp_path / "out", *FAST, "--seed", 5)
    interrupt(1)
    ict(*command)
    known = json.loads((tmp_path / "out" / ".ict-sample.json").read_text())
    assert known["seed"] == 5
    assert known["sha256"] == read_digest(RunDir(digits_run).latest_checkpoint())
    for damaged in ("[]", "[" * 100_000):
        (tmp_path / "out" / ".ict-sample.json").write_text(damaged)  # beside images
        refused(2, "is not an empty folder", *command)


def picture_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_conditional_grid_has_a_row_for_each_class_with_its_caption(
    ict: Ict, tmp_path: Path, labelled_run: Path
) -> None:
    """Found in the picture: each image of a class, from left to right, right of a caption that its name changes."""
    run = tmp_path / "run"
    shutil.copytree(labelled_run, run)
    options = ("--num", 8, "--labels", "2,0,2", "--device", "cpu", "--scale", 4)
    assert ict("sample", run, "--out", tmp_path / "x.npz", *options[:-2]).code == 0
    images, rows = samples(tmp_path / "x.npz"), {0: [1, 4, 7], 2: [0, 2, 3, 5, 6]}
    captions = []
    for names in (None, ["leaves", "moss", "a rock"], ["leaves", "moss", "岩"]):
        if names:
            record = json.loads((run / "data.json").read_text()) | {"class_names": names}
            (run / "data.json").write_text(json.dumps(record))
        assert ict("sample", run, "--out", tmp_path / f"{names}.png", *options).code == 0
        picture = picture_of(tmp_path / f"{names}.png")
        assert picture.shape[0] == 2 * 9 * 4
        left = picture.shape[1] - 5 * 9 * 4  # the larger class has five images
        for row, numbers in enumerate(rows.values()):
            for column, number in enumerate(numbers):
                top, side = row * 36, left + column * 36
                assert np.array_equal(picture[top : top + 32 : 4, side : side + 32 : 4], images[number])
        assert (picture[:36, left + 3 * 36 :] == 255).all()
        strip = picture[:, :left]
        assert all((strip[row * 36 : row * 36 + 36] < 128).any() for row in range(2))
        captions.append(strip)
    numbers, named, other = captions
    assert named.shape[1] > numbers.shape[1]
    assert not np.array_equal(other[36:], named[36:])
    assert caption(2, ["leaves", "moss", "岩"]) == "2"  # the font has no such letter
    assert caption(1, ["a", "Müll", "b"]) == "Mull"


def test_a_trajectory_of_classes_has_captions(ict: Ict, tmp_path: Path, labelled_run: Path) -> None:
    options = ("--num", 3, "--trajectory", "--device", "cpu", "--scale", 5)
    assert ict("sample", labelled_run, "--out", tmp_path / "t.png", *options).code == 0
    picture = picture_of(tmp_path / "t.png")
    strip = picture[:, : picture.shape[1] - 2 * 45]
    assert picture.shape[0] == 3 * 45
    assert all((strip[row * 45 : row * 45 + 45] < 128).any() for row in range(3))


def test_many_images_of_a_class_go_on_in_another_row() -> None:
    images = np.zeros((40, 1, 2, 2), np.uint8)
    grid = class_grid(images, np.zeros(40, np.int64), ["a name of many more than four and twenty letters"], scale=5)
    assert grid.shape[0] == 3 * 15
    assert grid.shape[1] < 16 * 15 + 200


@pytest.mark.parametrize("value", ["0", "65", "1.5"])
def test_a_wrong_scale_is_refused(refused: Refused, tmp_path: Path, digits_run: Path, value: str) -> None:
    refused(2, "'--scale'", "sample", digits_run, "--out", tmp_path / "x.png", "--scale", value)


@pytest.mark.parametrize("name", ["x.npz", "folder"])
def test_only_a_picture_is_scaled(refused: Refused, tmp_path: Path, digits_run: Path, name: str) -> None:
    refused(2, f"{name} must end in .png for --scale 2", "sample", digits_run, "--out", tmp_path / name, "--scale", 2)


def test_a_grid_is_enlarged_by_an_integer(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    for name, options in {"a": (), "b": ("--scale", 1), "c": ("--scale", 7)}.items():
        assert (
            ict("sample", digits_run, "--num=4", "--device=cpu", "--out", tmp_path / f"{name}.png", *options).code == 0
        )
    a, b, c = (picture_of(tmp_path / f"{name}.png") for name in "abc")
    assert b.shape == (18, 18, 3)
    assert np.array_equal(a, b.repeat(4, 0).repeat(4, 1))
    assert np.array_equal(c, b.repeat(7, 0).repeat(7, 1))
