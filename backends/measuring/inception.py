"""The field's Inception network: downloaded once, its hash checked, and kept in the cache."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from ict_backends import load_features
from ict_backends.errors import CheckpointError, DataError, UsageError
from ict_backends.files import cache_folder, check_no_pointer, file_sha256, write_atomically
from ict_backends.protocols import FeatureNetwork

# TensorFlow's network of that date, translated into TorchScript; EDM, StyleGAN and clean-fid measure with it.
INCEPTION = "inception-2015-12-05"
_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


def fetch_inception(url: str = _URL) -> Path:
    """The path of the network's file in the cache, downloaded if it is not there yet.

    Raises:
        DataError: the file cannot be downloaded, or has another sha256; nothing is kept then.
    """
    path = cache_folder() / f"{INCEPTION}.pt"
    if path.is_file() and file_sha256(path) == _SHA256:
        return path
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"--features {INCEPTION} cannot be downloaded from {url} ({reason}); fetch that file elsewhere and give it "
            f"as --features FILE, or put it at {path} (docs/evaluation.md)"
        ) from error
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise DataError(f"--features {INCEPTION}: what {url} gives is another file: its sha256 is not {_SHA256}")
    write_atomically(path, content)
    return path


def feature_network(features: str | None, device: str, *, trust: bool = False) -> FeatureNetwork | None:
    """The feature network that --features names; None for pixels.

    Args:
        features: a file, or `INCEPTION`, which is downloaded once; "pixels" or None for no network.
        device: name of the device that the network computes on.
        trust: load any file. Such files are programs; without it, only the known network is loaded, by its sha256.

    Raises:
        DataError: the network cannot be downloaded.
        CheckpointError: the file cannot be read, or is no feature network.
        UsageError: the file is a pickle, which is never read; or it is not the known network and not trusted; or there
            is no such device.
    """
    if features is None or features == "pixels":
        return None
    path = fetch_inception() if features == INCEPTION else Path(features)
    check_no_pointer(path)
    _check_no_pickle(path)
    if not trust:
        _check_known(path)
    return load_features(path, device=device)


# What the pickles of EDM and StyleGAN3 ask for near their beginning: it runs the source code that they hold.
_PERSISTENCE = b"torch_utils.persistence"
_PICKLE_HEAD = 2**16


def _check_no_pickle(path: Path) -> None:
    """Raise UsageError if a file is a pickle, as EDM and StyleGAN3 keep this network in inception-2015-12-05.pkl."""
    try:
        with open(path, "rb") as file:
            head = file.read(_PICKLE_HEAD)
    except OSError as error:
        raise CheckpointError(f"--features {path} cannot be read: {error.strerror}") from error
    is_pickle = head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    if is_pickle and (_PERSISTENCE in head or path.suffix.lower() in (".pkl", ".pickle")):
        raise UsageError(
            f"--features {path} is a pickle, in which EDM and StyleGAN3 keep source code for the reader to run: it is "
            f"never read; --features {INCEPTION} is their Inception network as TorchScript, from {_URL}"
        )


def _check_known(path: Path) -> None:
    try:
        known = file_sha256(path) == _SHA256
    except OSError as error:
        raise CheckpointError(f"--features {path} cannot be read: {error.strerror}") from error
    if not known:
        raise UsageError(
            f"--features {path} is not the known network {INCEPTION} by its sha256, and the file of a network is a "
            "program that would run here; if you trust it, add --trust-features"
        )
