"""Small data sets in every format that is read, and mutations of their files; loaded through pytest's `pythonpath`."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, features

from ict_backends.data.dataset import Dataset, load_data
from ict_backends.errors import UserError

_RNG = np.random.default_rng(0)
# Three of each of two classes, whose folders sort as their labels do.
IMAGES = _RNG.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 0, 0, 1, 1, 1])
NAMES = [f"{'ab'[label]}/{i}" for i, label in enumerate(LABELS)]
CIFAR_IMAGES = _RNG.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(stream, kind, **options)
    return stream.getvalue()


def png_files(top: str = "") -> dict[str, bytes]:
    return {f"{top}{name}.png": encoded(image) for name, image in zip(NAMES, IMAGES, strict=True)}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], packing: str = "") -> Path:
    with tarfile.open(path, f"w:{packing}") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


class _Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as in CIFAR's files."""

    dispatch = pickle._Pickler.dispatch | {
        bytes: lambda self, text: self.write(pickle.BINSTRING + len(text).to_bytes(4, "little") + text)
    }


def python2_pickle(value: object) -> bytes:
    stream = io.BytesIO()
    _Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def cifar_files(
    images: np.ndarray = CIFAR_IMAGES, write: Callable[[object], bytes] = python2_pickle
) -> dict[str, bytes]:
    """Files of CIFAR-10's names, two images each; the label of image i is i."""
    files = {}
    for i in range(5):
        rows = images[2 * i : 2 * i + 2].reshape(2, -1)
        batch = {b"batch_label": b"x", b"labels": [2 * i, 2 * i + 1], b"data": rows, b"filenames": [b"a.png", b"b.png"]}
        files[f"cifar-10-batches-py/data_batch_{i + 1}"] = write(batch)
    files["cifar-10-batches-py/test_batch"] = write({b"labels": [0], b"data": images[:1].reshape(1, -1)})
    files["cifar-10-batches-py/batches.meta"] = write({b"label_names": [f"class {i}".encode() for i in range(10)]})
    return files


def write_imagenet(path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    np.savez(path, data=images.reshape(len(images), -1), labels=labels, mean=images.reshape(len(images), -1).mean(0))
    return path


def imagenet_pickle() -> bytes:
    """A batch as it is published for Python 2."""
    rows = IMAGES.reshape(len(IMAGES), -1)
    return python2_pickle({"data": rows, "labels": [int(label) + 1 for label in LABELS], "mean": rows.mean(0)})


def class_files() -> dict[str, bytes]:
    """Images of WebDataset, with their classes beside them."""
    images = {f"{i}.png": encoded(image) for i, image in enumerate(IMAGES)}
    return images | {f"{i}.cls": "ab"[label].encode() for i, label in enumerate(LABELS)}


def write_parquet(path: Path, column: str = "image", label: str | None = "label", **options: object) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": encoded(image), "path": f"{name}.png"} for name, image in zip(NAMES, IMAGES, strict=True)]
    columns = {column: images} | ({} if label is None else {label: LABELS})
    pq.write_table(pa.table(columns), path, row_group_size=2, write_page_checksum=True, **options)
    return path


# --- mutated files ---------------------------------------------------------------------------------------------------


class Sample:
    """A data set, and the one file in it that is mutated.

    Attributes:
        checked: the format has checksums, so that what is read of a mutated file is what was written, or an error.
        images, labels: what was written.
    """

    def __init__(self, source: Path, file: Path, *, checked: bool) -> None:
        self.source, self.file, self.checked = source, file, checked
        self.content = file.read_bytes()
        self.images, self.labels, _ = load_data(str(source))

    def outcome(self, content: bytes) -> str:
        """ "refused", "unchanged" or "changed" for another content of the file.

        Raises AssertionError for an error of several lines, and for images that cannot come of the file.
        """
        self.file.write_bytes(content)
        try:
            found = load_data(str(self.source))
        except UserError as refusal:
            error = str(refusal)
        else:
            return self._judge(found)
        assert error.strip()
        assert "\n" not in error
        return "refused"

    def _judge(self, found: Dataset) -> str:
        same_labels = (found.labels is None) == (self.labels is None) and (
            self.labels is None or np.array_equal(found.labels, self.labels)
        )
        if same_labels and np.array_equal(found.images, self.images):
            return "unchanged"
        assert not self.checked, "images or labels changed without notice, in a format with checksums"
        assert found.images.dtype == np.uint8
        assert found.images.size == self.images.size, "images went without notice"
        if found.labels is not None:
            assert len(found.labels) == len(found.images)
            assert found.labels.min() >= 0
        return "changed"


def make_samples(folder: Path) -> dict[str, Sample]:
    """A sample of each format, by its name."""
    jpegs = {f"{name}.jpg": encoded(image, "JPEG") for name, image in zip(NAMES, IMAGES, strict=True)}
    png, edm = write_folder(folder / "png", png_files()), write_folder(folder / "edm", png_files())
    jpg = write_folder(folder / "jpg", jpegs)
    others = {"gif": "GIF", "bmp": "BMP", "ppm": "PPM", "tif": "TIFF", "webp": "WEBP", "dib": "DIB"}
    others |= {"avif": "AVIF"} if features.check("avif") else {}
    listed = {"labels": [[f"{name}.png", int(label)] for name, label in zip(NAMES, LABELS, strict=True)]}
    (edm / "dataset.json").write_text(json.dumps(listed))
    cifar = write_folder(folder / "cifar", cifar_files())
    np.savez(folder / "images.npz", images=IMAGES, labels=LABELS)
    np.savez_compressed(folder / "packed.npz", images=IMAGES, labels=LABELS)
    np.save(folder / "images.npy", IMAGES.transpose(0, 2, 3, 1))
    whole = {
        "zip": write_zip(folder / "images.zip", png_files()),
        "zip, stored": write_zip(folder / "stored.zip", jpegs, zipfile.ZIP_STORED),
        "tar": write_tar(folder / "images.tar", png_files()),
        "tar.gz": write_tar(folder / "images.tar.gz", png_files(), "gz"),
        "tar.xz": write_tar(folder / "images.tar.xz", png_files(), "xz"),
        "npz": folder / "images.npz",
        "npz, packed": folder / "packed.npz",
        "ImageNet npz": write_imagenet(folder / "train_data_batch_1.npz", IMAGES, LABELS + 1),
        "CIFAR tar.gz": write_tar(folder / "cifar-10-python.tar.gz", cifar_files(), "gz"),
        "Parquet": write_parquet(folder / "images.parquet"),
        "ImageNet zip": write_zip(folder / "Imagenet8_train.zip", {"train_data_batch_1": imagenet_pickle()}),
        "WebDataset": write_tar(folder / "web.tar.gz", class_files(), "gz"),
    }
    samples = {name: Sample(path, path, checked=True) for name, path in whole.items()}
    samples["png"] = Sample(png, png / "a" / "1.png", checked=True)
    samples["jpg"] = Sample(jpg, jpg / "a" / "1.jpg", checked=False)
    samples["npy"] = Sample(folder / "images.npy", folder / "images.npy", checked=False)
    samples["CIFAR pickle"] = Sample(cifar, cifar / "cifar-10-batches-py" / "data_batch_2", checked=False)
    for suffix, kind in others.items():
        options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
        files = {f"{name}.{suffix}": encoded(image, kind, **options) for name, image in zip(NAMES, IMAGES, strict=True)}
        place = write_folder(folder / suffix, files)
        samples[suffix] = Sample(place, place / "a" / f"1.{suffix}", checked=False)
    samples["dataset.json"] = Sample(edm, edm / "dataset.json", checked=False)
    imagenet = write_folder(folder / "imagenet", {"train_data_batch_1": imagenet_pickle()})
    samples["ImageNet pickle"] = Sample(imagenet, imagenet / "train_data_batch_1", checked=False)
    hub = folder / "hub"
    (hub / "data").mkdir(parents=True)
    for split in ("train", "test"):
        write_parquet(hub / "data" / f"{split}-00000-of-00001.parquet", label="category")
    samples["hub snapshot"] = Sample(hub, hub / "data" / "train-00000-of-00001.parquet", checked=True)
    return samples


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: bits and bytes, pieces cut out, put in, doubled or zeroed, the end cut off."""
    data = bytearray(content)
    for _ in range(min(4, rng.geometric(0.6))):
        if not data:
            break
        place = int(rng.integers(len(data)))
        if rng.random() < 0.3:  # what says what follows stands at the ends
            near = int(rng.integers(min(64, len(data))))
            place = near if rng.random() < 0.5 else len(data) - 1 - near
        length = int(rng.integers(1, 65))
        match rng.integers(8):
            case 0:
                data[place] ^= 1 << int(rng.integers(8))
            case 1:
                data[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, int(rng.integers(256))]))
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = rng.bytes(length)
            case 4:
                data[place:place] = data[place : place + length]
            case 5:
                data[place : place + length] = bytes(min(length, len(data) - place))
            case 6:
                data[place : place + 4] = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0")[int(rng.integers(3))]
            case 7:
                del data[place:]
    return bytes(data)


def let_others_in(path: Path) -> None:
    """Open a test's folder, and those that it is in, to other users."""
    temporary = Path(tempfile.gettempdir())
    for place in (path, *path.parents):
        if place != temporary and place.is_relative_to(temporary):
            place.chmod(place.stat().st_mode | 0o055)
