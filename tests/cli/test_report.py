"""`ict report`: one page that holds everything and shows what the run's files say."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import TINY

from ict_backends.errors import CheckpointError
from ict_backends.reports import figures
from ict_backends.reports.charts import Mark, Series, line_chart, number
from ict_backends.reports.page import nearest_images
from ict_backends.runs.folder import RunDir
from ict_backends.training.evaluator import read_evaluations
from ict_backends.training.metrics_log import BANDS, band_edges, band_names
from ict_backends.training.step_plan import plan_step
from ict_core import __version__, stages

VOID = {"meta", "img", "input", "line", "polyline", "br"}


class Page(HTMLParser):
    """What a page holds; every element that is opened must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def points(self) -> list[int]:
        """The number of points of each line."""
        return [len(attrs["points"].split()) for tag, attrs in self.tags if tag == "polyline"]


def picture(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four steps with three pictures and two evaluations."""
    from ict_cli.main import run as ict

    options = [
        "--set=train.sample_every=2",
        "--set=eval.every=2",
        "--set=eval.num=70",
        "--set=train.learning_rate=1e-2",
    ]
    with pytest.raises(SystemExit) as stop:
        ict(["train", f"--out={tmp_path / 'run'}", *TINY, "--steps=4", *options])
    assert stop.value.code == 0
    return tmp_path / "run"


def test_the_page_shows_the_run_and_needs_nothing_else(ict: Ict, run: Path) -> None:
    done = ict("report", run, "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.findall(r"https?://", text)
    assert all(attrs["src"].startswith("data:") for tag, attrs in page.tags if tag == "img")
    assert not [tag for tag, attrs in page.tags if tag == "link" or (tag == "script" and "src" in attrs)]
    words = " ".join(page.words)
    found = stages(4, s0=10, s1=160)
    assert len(found) > 2
    for said in ("4 of 4 steps", "train.learning_rate", "best pixel-fd", "Nearest training images"):
        assert said in words
    assert all(f"N={stage.n}" in words for stage in found)
    frames = json.loads(re.search(r"const frames = (\[.*?\]);\n", text)[1])
    assert [step for step, _ in frames] == [2, 4]
    for step, url in frames:
        with Image.open(RunDir(run).samples_file(step)) as saved:
            np.testing.assert_array_equal(np.asarray(picture(url)), np.asarray(saved))
    slider = next(attrs for tag, attrs in page.tags if tag == "input")
    assert (slider["min"], slider["max"]) == ("0", "1")
    # The loss, eight bands, the gradient, the evaluation.
    points, names = page.points(), band_names(RunDir(run).load_config())
    assert (points[0], points[-2:], len(points)) == (4, [4, 2], 1 + BANDS + 2)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert points[1:-2] == [sum(line["loss_bands"][name] is not None for line in lines) for name in names]
    nearest = picture([attrs["src"] for tag, attrs in page.tags if tag == "img"][-1])
    assert nearest.size == (5 * 36, 8 * 36)


def test_the_nearest_images_are_those_of_the_weights_that_are_asked_for(ict: Ict, tmp_path: Path, run: Path) -> None:
    found = []
    for weights in ("ema", "raw"):
        assert ict("report", run, "--weights", weights, "--out", tmp_path / "x.html", "--device", "cpu").code == 0
        page = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
        found.append([attrs["src"] for tag, attrs in page.tags if tag == "img"][-1])
    assert found[0] != found[1]


def test_the_page_holds_no_file_from_elsewhere(ict: Ict, tmp_path: Path, run: Path) -> None:
    """Pages are given to others, runs are taken from others: a link in a run reaches no file of the reader."""
    picture_file = RunDir(run).samples_file(4)
    (tmp_path / "secret.png").write_bytes(picture_file.read_bytes() + b"secret")
    picture_file.unlink()
    picture_file.symlink_to(tmp_path / "secret.png")
    RunDir(run).samples_file(3).write_bytes(b"no picture")
    RunDir(run).samples_file(5).symlink_to("/dev/zero")
    assert ict("report", run, "--device", "cpu").code == 0
    frames = json.loads(re.search(r"const frames = (\[.*?\]);\n", (run / "report.html").read_text())[1])
    assert [step for step, _ in frames] == [2]


def test_losses_by_level_add_up_to_the_loss(ict: Ict, run: Path) -> None:
    config = RunDir(run).load_config()
    edges = band_edges(config)
    assert len(edges) == BANDS + 1
    assert (edges[0], edges[-1]) == pytest.approx((0.002, 80))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for step, line in enumerate(lines):
        levels = plan_step(config, step, 1797).levels.sigma_hi
        counts = np.array([((lo < levels) & (levels <= hi * (1 + 1e-12))).sum() for lo, hi in zip(edges, edges[1:])])  # noqa: B905, RUF007
        assert counts.sum() == config.train.batch_size
        assert list(line["loss_bands"]) == band_names(config)
        values = line["loss_bands"].values()
        assert [n > 0 for n in counts] == [value is not None for value in values]
        total = sum(n * value for n, value in zip(counts, values, strict=True) if n)
        assert total / counts.sum() == pytest.approx(line["loss"], rel=1e-5)


def test_a_run_without_its_data_evaluations_or_bands_has_a_page_too(ict: Ict, tmp_path: Path, run: Path) -> None:
    (run / "evals.jsonl").unlink()
    (run / "metrics.jsonl").write_text('{"step": 2, "n": 11, "loss": 3.5, "images_per_second": 1.0}\n')
    text = (run / "config.toml").read_text().replace('source = "digits"', 'source = "gone <&> away.npz"')
    (run / "config.toml").write_text(text)
    shutil.rmtree(run / "samples")
    done = ict("report", run, "--out", tmp_path / "x.html", "--device", "cpu")
    assert (done.code, done.err.count("\n")) == (0, 1)
    assert "Warning: without nearest training images" in done.err
    page = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert page.points() == [1]
    assert "gone <&> away.npz" in " ".join(page.words)


def test_wrong_input_is_refused_in_one_line(refused: Refused, tmp_path: Path, run: Path) -> None:
    refused(1, "does not exist", "report", tmp_path / "none")
    refused(2, "must end in .html", "report", run, "--out", tmp_path / "x.pdf")
    refused(2, "unknown backend", "report", run, "--backend", "numpy")
    (run / "metrics.jsonl").write_text('{\n{"step": 2}\n')
    refused(1, "metrics.jsonl cannot be read", "report", run, "--device", "cpu")


@given(seed=st.integers(0, 1000), count=st.integers(1, 5))
def test_nearest_images_are_those_of_brute_force(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    images, samples = (rng.integers(0, 256, (n, 1, 2, 3), dtype=np.uint8) for n in (12, 3))
    samples[1] = images[7]
    found = nearest_images(samples, images, count)
    assert found[1, 0] == 7
    for row, sample in zip(found, samples, strict=True):
        distances = ((images.astype(float) - sample) ** 2).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(np.sort(distances)[:count], distances[row])


def test_charts_leave_out_what_cannot_be_drawn() -> None:
    points = [(0, 1.0), (1, float("nan")), (2, 0.0), (3, 100.0)]
    one = [Series("a <b>", points)]
    assert Page(line_chart(one, x_label="x", y_label="y", log_y=True)).points() == [2]
    assert Page(line_chart(one, x_label="x", y_label="y", marks=[Mark(1, "<m>"), Mark(9, "out")])).points() == [3]
    assert "out" not in line_chart(one, x_label="x", y_label="y", marks=[Mark(9, "out")])
    assert "Nothing to draw" in line_chart([Series("a", [])], x_label="x", y_label="y")
    assert Page(line_chart([Series("a", [(1, 5.0)])], x_label="x", y_label="y")).points() == [1]


WIDE = [(0, 400_000), (0, 2_300), (0, 45), (0, 1_234_567), (-3, 3), (0, 0.02)]
HIGH = [(1, 98), (0.9, 2.1), (1e-9, 1e6), (3, 3.001), (20, 30), (1e-5, 1.3e-4), (0.02, 900)]


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize("wide", WIDE)
@pytest.mark.parametrize("high", HIGH)
def test_no_label_covers_another_also_in_the_large_letters_of_a_phone(
    wide: tuple[float, float], high: tuple[float, float], log_y: bool
) -> None:
    """The page's style has letters of 21 units there, at most 0.6 of their size wide; none leaves the chart."""
    points = list(zip(wide, high, strict=True))
    marks = [
        Mark(max(wide) * share, f"N={n}") for share, n in ((0, 11), (0.02, 21), (0.1, 641), (0.3, 1281), (0.98, 9))
    ]
    text = line_chart([Series("a", points)], x_label="step", y_label="loss", marks=marks, log_y=log_y)
    boxes = []
    for attributes, words in re.findall("<text ([^>]*)>([^<]*)</text>", text):
        found = dict(re.findall(r'([\w-]+)="([^"]*)"', attributes))
        if "transform" in found:
            boxes.append((words, 3.0, 24.0, 0.0, 320.0))
            continue
        x, y, width = float(found["x"]), float(found["y"]), 0.6 * 21 * len(words)
        left = x - width * {"middle": 0.5, "end": 1.0}.get(found.get("text-anchor", ""), 0.0)
        boxes.append((words, left, left + width, y - 16, y + 2))
    assert len(boxes) >= 6
    for i, (words, left, right, top, bottom) in enumerate(boxes):
        assert left >= 0, words
        assert right <= 720, words
        for other, left_2, right_2, top_2, bottom_2 in boxes[:i]:
            apart = left >= right_2 or left_2 >= right or top >= bottom_2 or top_2 >= bottom
            assert apart, (words, other)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.25, "0.25"),
        (1500, "1500"),
        (400_000, "400k"),
        (1.2e6, "1.2M"),
        (1e-5, "1e-5"),
        (-2, "-2"),
        (1.2e-4, "1.2e-4"),
    ],
)
def test_numbers_of_an_axis_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("preset", ["digits", "cifar10", "digits-cm", "imagenet64"])
def test_no_number_of_a_plot_covers_another(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ict_core import load_preset

    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    figures.plot_method(load_preset(preset), tmp_path / "x.png")
    figures.plot_search([[(0.3 + i / 9, 1.0) for i in range(5)]], "kid", tmp_path / "y.png")
    for figure in drawn:
        figure.draw_without_rendering()
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            labels = [label for label in axis.get_ticklabels(which="both") if label.get_text() and label.get_visible()]
            low, high = sorted(axis.get_view_interval())
            boxes = [label.get_window_extent() for label in labels if low <= sum(label.get_position()) <= high]
            assert len(boxes) >= 2
            assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_a_chart_puts_larger_values_higher_and_later_ones_to_the_right() -> None:
    text = line_chart([Series("a", [(0, 1.0), (10, 10.0), (20, 100.0)])], x_label="x", y_label="y", log_y=True)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, p.split(",")) for p in re.search(r'points="([^"]*)"', text)[1].split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2
    assert ">10<" in text


LOGS = [
    '{"step": 2, "loss": "x"}',
    '{"step": 2, "loss": null}',
    '{"step": 2, "grad_norm": [1]}',
    '{"step": 2, "skipped": "many"}',
    '{"step": 2, "loss_bands": 3}',
    '{"step": 2, "loss_bands": [1]}',
    '{"step": 2, "loss_bands": ["a", 1, 1, 1, 1, 1, 1, 1]}',
    f'{{"step": {10**400}}}',
]


@pytest.mark.parametrize("text", LOGS, ids=range(len(LOGS)))
def test_a_log_of_no_numbers_is_refused(refused: Refused, run: Path, text: str) -> None:
    (run / "metrics.jsonl").write_text(text + '\n{"step": 3}\n')
    refused(1, "metrics.jsonl cannot be read: line 1 is damaged", "report", run, "--device", "cpu")


EVALUATIONS = [
    '{"step": 2, "metric": "sw", "num": 70, "value": "x"}',
    '{"step": 2, "metric": ["sw"], "num": 70, "value": 1}',
    '{"step": 2, "metric": "sw", "num": 70}',
    '{"step": 2, "num": 70, "value": 1}',
    f'{{"step": 2, "metric": "sw", "num": 70, "value": {10**400}}}',
]


@pytest.mark.parametrize("text", EVALUATIONS, ids=range(len(EVALUATIONS)))
def test_evaluations_without_a_value_are_refused(refused: Refused, run: Path, text: str) -> None:
    (run / "evals.jsonl").write_text(text + '\n{"step": 4, "metric": "sw", "num": 70, "value": 1}\n')
    says = "evals.jsonl cannot be read: line 1 is damaged"
    refused(1, says, "report", run, "--device", "cpu")
    with pytest.raises(CheckpointError, match=says):
        read_evaluations(RunDir(run))


def test_a_name_in_a_record_is_shown_and_is_no_part_of_the_page(ict: Ict, run: Path) -> None:
    (run / "evals.jsonl").write_text('{"step": 2, "metric": "</svg><script>x()", "num": 70, "value": 1}\n')
    assert ict("report", run, "--device", "cpu").code == 0
    page = (run / "report.html").read_text()
    assert "<script>x()" not in page
    assert "&lt;script&gt;x()" in page


def test_the_page_names_data_classes_dates_command_and_versions(
    ict: Ict, tmp_path: Path, images_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train = ["train", f"--out={run}", *TINY, f"--data={images_file}", "--set=network.num_classes=3"]
    assert ict(*train).code == 0
    assert ict("train", f"--out={run}", "--resume", "--steps=4", "--device=cpu").code == 0
    assert ict("report", run, "--device", "cpu").code == 0
    words = " ".join(Page((run / "report.html").read_text(encoding="utf-8")).words)
    assert f"{images_file}, 12 images" in words
    assert "classes 3: 0 (4), 1 (4), 2 (4)" in words
    assert re.search(rf"command ict train --data {re.escape(str(images_file))} --out {re.escape(str(run))} ", words)
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00"
    assert re.search(rf"started {date}, {date} \(step 2\)", words)
    assert re.search(rf"finished {date}", words)
    assert f"ict {__version__}" in words
    for package in ("numpy", "torch"):
        assert f"{package} {version(package)}" in words
    record = json.loads((run / "data.json").read_text()) | {"class_names": ["leaves", "<moss>", "rock"]}
    (run / "data.json").write_text(json.dumps(record))
    (run / "history.jsonl").unlink()  # as of an earlier version
    assert ict("report", run, "--device", "cpu").code == 0
    words = " ".join(Page((run / "report.html").read_text(encoding="utf-8")).words)
    assert "classes 3: leaves (4), <moss> (4), rock (4)" in words
    assert "started" not in words


HISTORY = ['{"step": 0}', '{"step": 0, "date": 3}', '{"step": 0, "date": "x", "versions": [1]}', "{"]


@pytest.mark.parametrize("text", HISTORY, ids=range(len(HISTORY)))
def test_a_damaged_history_is_refused(refused: Refused, run: Path, text: str) -> None:
    (run / "history.jsonl").write_text(text + '\n{"step": 4, "date": "x"}\n')
    refused(1, "history.jsonl cannot be read: line 1 is damaged", "report", run, "--device", "cpu")


def test_two_runs_are_laid_side_by_side(ict: Ict, refused: Refused, tmp_path: Path, run: Path) -> None:
    other = tmp_path / "other"
    changed = ("--seed=3", "--set=train.sample_every=1")
    assert ict("train", f"--out={other}", *TINY, *changed).code == 0
    out = tmp_path / "both.html"
    done = ict("report", run, other, "--out", out, "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    words = " ".join(page.words)
    assert "Settings that differ" in words
    assert "train.seed 0 3" in words
    assert "train.total_steps 4 2" in words
    assert "train.batch_size" not in words.partition("steps, ")[0].partition(str(other))[0]
    assert sum(tag == "section" for tag, _ in page.tags) == 2
    frames = [json.loads(each) for each in re.findall(r"const frames = (\[.*?\]);\n", text)]
    assert [[step for step, _ in each] for each in frames] == [[2, 4], [1, 2]]
    assert not [attrs["id"] for _, attrs in page.tags if "id" in attrs]  # of which a page must not have two
    refused(2, "--out FILE.html is needed for two runs", "report", run, other)
    refused(2, "one run, or two to lay side by side, not 3", "report", run, other, run, "--out", tmp_path / "x.html")
    refused(1, "does not exist", "report", run, tmp_path / "none", "--out", tmp_path / "x.html")
    same = ict("report", run, run, "--out", out, "--device", "cpu")
    assert same.code == 0
    assert "The same settings" in " ".join(Page(out.read_text(encoding="utf-8")).words)
