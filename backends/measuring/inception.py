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

# A translation into TorchScript of TensorFlow's network of that date, which EDM, StyleGAN and clean-fid measure with.
INCEPTION = "inception-2015-12-05"
_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


def fetch_inception(url: str = _URL) -> Path:
    """The file in the cache, downloaded where it is not there yet.

    Raises:
        DataError: in one line, that it cannot be downloaded, or is another file; nothing is kept then.
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
    """The network that --features names: a file, or the field's own, which is downloaded; None for pixels.

    Raises:
        DataError: it cannot be downloaded.
        CheckpointError, UsageError: there is no such file or device, or it is no feature network.
    """
    if features is None or features == "pixels":
        return None
    path = fetch_inception() if features == INCEPTION else Path(features)
    return load_features(path, device=device)
