"""Files that commands write: what ict wrote is replaced, and the command says so; any other file stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
from tiny import TINY

from ict_backends.data.ours import is_our_output
from ict_backends.images import encode_png

SMALL = [option for option in TINY if not option.startswith("--steps")]
# By name: the option, the file's suffix, and the words of the command before the option.
COMMANDS = {
    "sample": ("--out", ".png", ["sample", "RUN", "--num=2", "--device=cpu"]),
    "edit": ("--out", ".png", ["edit", "denoise", "RUN", "--image=IMAGE", "--sigma=1", "--device=cpu"]),
    "interpolate": ("--out", ".png", ["edit", "interpolate", "RUN", "--num=2", "--device=cpu"]),
    "report": ("--out", ".html", ["report", "RUN", "--device=cpu"]),
    "eval": ("--json", ".json", ["eval", "RUN", "--metrics=sw", "--num=70", "--device=cpu"]),
    "show": ("--plot", ".png", ["show", "digits"]),
    "runs": ("--json", ".json", ["runs", "RUN"]),
    "bench": (
        "--out",
        ".json",
        ["bench", "--preset=digits", *SMALL, "--repeats=1", "--images=2", "--product=8", "--copy=64"],
    ),
}


@pytest.fixture
def words(name: str, tmp_path: Path, digits_run: Path) -> list[str]:
    """The command, its option and the file in tmp_path/out."""
    option, suffix, start = COMMANDS[name]
    (tmp_path / "photo.png").write_bytes(encode_png(np.full((8, 8, 1), 99, np.uint8)))
    known = {"RUN": str(digits_run), "--image=IMAGE": f"--image={tmp_path / 'photo.png'}"}
    return [*(known.get(word, word) for word in start), option, str(tmp_path / f"out{suffix}")]


@pytest.mark.parametrize("name", COMMANDS)
def test_what_ict_wrote_is_replaced_and_said_to_be(ict: Ict, words: list[str], name: str) -> None:
    said = f"{words[-1]} is there already, and will be replaced"
    first = ict(*words)
    assert first.code == 0, first.err
    assert said not in first.err
    assert is_our_output(Path(words[-1]))
    again = ict(*words)
    assert again.code == 0, again.err
    assert said in again.err.splitlines()


OTHERS = {
    ".png": encode_png(np.zeros((4, 4, 3), np.uint8)),
    ".html": b"<!DOCTYPE html><title>mine</title>",
    ".json": b'{"mine": 1}',
}


@pytest.mark.parametrize("name", COMMANDS)
def test_another_file_is_refused_before_any_work(refused: Refused, words: list[str], name: str) -> None:
    *_, option, file = words
    Path(file).write_bytes(OTHERS[Path(file).suffix])
    refused(2, f"{option} {file} is there already, and nothing that ict wrote; choose another name", *words)


def test_an_edit_keeps_another_picture_in_the_place_of_its_comparison(
    refused: Refused, tmp_path: Path, digits_run: Path
) -> None:
    for name in ("photo", "x-side-by-side"):
        (tmp_path / f"{name}.png").write_bytes(encode_png(np.zeros((8, 8, 1), np.uint8)))
    image = f"--image={tmp_path / 'photo.png'}"
    says = "x-side-by-side.png is there already, and nothing that ict wrote"
    refused(2, says, "edit", "denoise", digits_run, image, "--sigma=1", f"--out={tmp_path / 'x.png'}")
    refused(
        2,
        "photo.png is there already",
        "edit",
        "denoise",
        digits_run,
        image,
        "--sigma=1",
        image.replace("image", "out", 1),
    )


def test_an_npz_that_ict_did_not_write_is_kept(refused: Refused, tmp_path: Path, digits_run: Path) -> None:
    np.savez(tmp_path / "mine.npz", np.zeros(3))
    refused(
        2, "mine.npz is there already, and not as", "sample", digits_run, "--num=2", f"--out={tmp_path / 'mine.npz'}"
    )


def test_a_search_says_that_it_replaces_levels_and_keeps_other_pictures(
    ict: Ict, refused: Refused, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert ict("train", f"--out={run}", *TINY).code == 0
    search = ("search-sigmas", run, "--metric=sw", "--num=70", "--device=cpu")
    (tmp_path / "x.png").write_bytes(OTHERS[".png"])
    refused(2, "--plot .*x.png is there already, and nothing that ict wrote", *search, f"--plot={tmp_path / 'x.png'}")
    assert "replaced" not in ict(*search).err
    assert f"{run / 'sigmas.json'} was there already, and is replaced" in ict(*search).err


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"{}", b"[" * 10**5, b"{" + b'"a":[' * 10**5, json.dumps({"num": 1}).encode()]
)
def test_what_is_nothing_of_ours_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert not is_our_output(tmp_path / "x")
    assert not is_our_output(tmp_path)
    assert not is_our_output(tmp_path / "none")


def test_pages_of_earlier_versions_are_ours(tmp_path: Path) -> None:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    style = "\n:root { color-scheme: light dark; --line: #8886; --soft: #8882; }"
    page = f'<!DOCTYPE html><html lang="en"><head>{head}<title>mine: report</title><style>{style}'
    (tmp_path / "x.html").write_text(page)
    assert is_our_output(tmp_path / "x.html")
