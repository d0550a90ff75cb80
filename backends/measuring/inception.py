"""The field's Inception network: downloaded once, its hash checked, and kept in the cache."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from ict_backends import load_features
from ict_backends.errors import DataError
from ict_backends.files import cache_folder, file_sha256, write_atomically
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
            f"--features {INCEPTION} cannot be downloaded from {url} ({reason}); give the file itself instead"
        ) from error
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise DataError(f"--features {INCEPTION}: what {url} gives is another file: its sha256 is not {_SHA256}")
    write_atomically(path, content)
    return path


def feature_network(features: str | None, device: str) -> FeatureNetwork | None:
    """The feature network that --features names; None for pixels.

    Args:
        features: a file, or `INCEPTION`, which is downloaded once; "pixels" or None for no network.
        device: name of the device that the network computes on.

    Raises:
        DataError: the network cannot be downloaded.
        CheckpointError: the file cannot be read, or is no feature network.
        UsageError: there is no such device.
    """
    if features is None or features == "pixels":
        return None
    path = fetch_inception() if features == INCEPTION else Path(features)
    return load_features(path, device=device)
