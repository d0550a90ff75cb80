"""The user's cache folder, where there is no home to have it in."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from ict_backends import files
from ict_backends.files import cache_folder


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of a user whom the system does not know, as in a container."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    files._cache_of_the_homeless.cache_clear()
    return tmp_path


def test_a_user_without_a_home_has_a_cache_of_his_own(homeless: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cache_folder() == cache_folder() == homeless / f"ict-{os.getuid()}"
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    assert capfd.readouterr().err.count("Warning: there is no home folder") == 1
    assert [path.name for path in homeless.iterdir()] == [cache_folder().name]  # and no folder called ~


@pytest.mark.parametrize("taken", ["by all", "by a link"])
def test_a_cache_that_others_can_write_into_is_not_taken(homeless: Path, taken: str) -> None:
    place = homeless / f"ict-{os.getuid()}"
    if taken == "by all":
        place.mkdir()
        place.chmod(0o777)
    else:
        place.symlink_to(homeless)
    assert cache_folder() != place
    assert cache_folder().parent == homeless
    assert cache_folder().stat().st_mode & 0o777 == 0o700
