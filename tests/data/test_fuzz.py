"""Mutated files of every format: refused in one line, or read right. `bench/fuzz_readers.py` does thousands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_samples import Sample, make_samples, mutate
from PIL import features

FILES = 20  # a format
FORMATS = [
    *(
        "png",
        "jpg",
        "gif",
        "bmp",
        "ppm",
        "tif",
        "webp",
        "zip",
        "zip, stored",
        "tar",
        "tar.gz",
        "tar.xz",
        "npz",
        "npz, packed",
        "npy",
    ),
    *("CIFAR pickle", "CIFAR tar.gz", "ImageNet npz", "Parquet", "dataset.json"),
    *("ImageNet pickle", "ImageNet zip", "WebDataset", "hub snapshot", "dib"),
    *(["avif"] if features.check("avif") else []),
]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    return make_samples(tmp_path_factory.mktemp("samples"))


def test_every_format_is_mutated(samples: dict[str, Sample]) -> None:
    assert set(samples) == set(FORMATS)
    assert FILES * len(FORMATS) >= 200


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_are_refused_or_read_right(
    samples: dict[str, Sample], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sample = samples[name]
    assert sample.outcome(sample.content) == "unchanged"
    outcomes = [sample.outcome(mutate(sample.content, np.random.default_rng([1, i]))) for i in range(FILES)]
    sample.file.write_bytes(sample.content)
    assert "refused" in outcomes


def test_the_check_can_fail(samples: dict[str, Sample]) -> None:
    """Of images that are fewer, or not the same though there were checksums."""
    sample = samples["zip"]
    with pytest.raises(AssertionError, match="changed without notice"):
        sample.outcome(samples["zip, stored"].content)
    sample.file.write_bytes(sample.content)
