"""Files and folders: whole or not at all, on the disk before their names are, and links never followed to remove."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from ict_backends.arrays import read_safetensors, write_safetensors
from ict_backends.files import discard, remove_folder, whole_file, whole_folder, write_atomically


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with work that no removal may reach."""
    path = tmp_path / "elsewhere"
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "thesis.tex").write_text("years of work")
    return path


def is_whole(elsewhere: Path) -> bool:
    return (elsewhere / "deep" / "thesis.tex").read_text() == "years of work"


def test_of_a_link_only_the_link_is_removed(tmp_path: Path, elsewhere: Path) -> None:
    for remove in (remove_folder, discard):
        link = tmp_path / "link"
        link.symlink_to(elsewhere)
        remove(link)
        assert not link.is_symlink()
        assert is_whole(elsewhere)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(elsewhere)
    remove_folder(tmp_path / "folder")
    assert is_whole(elsewhere)
    assert [p.name for p in tmp_path.iterdir()] == ["elsewhere"]


def test_a_new_folder_or_file_takes_the_place_of_a_link_and_not_of_what_it_points_to(
    tmp_path: Path, elsewhere: Path
) -> None:
    link, pid = tmp_path / "link", os.getpid()
    for name in ("link", f".link.{pid}.tmp", f".link.{pid}.old.tmp"):
        (tmp_path / name).symlink_to(elsewhere)
    with whole_folder(link) as folder:
        (folder / "new").write_text("new")
    assert not link.is_symlink()
    assert [p.name for p in link.iterdir()] == ["new"]
    (tmp_path / "file").symlink_to(elsewhere / "deep" / "thesis.tex")
    (tmp_path / f".file.{pid}.tmp").symlink_to(elsewhere / "deep" / "thesis.tex")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert is_whole(elsewhere)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synchronised and renamed from now on, by the names that it has then, in order."""
    found: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        found.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        found.append(("rename", f"{Path(source).name} {Path(target).name}"))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return found


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_call_ends(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    here, pid = tmp_path.name, os.getpid()
    write_atomically(tmp_path / "new" / "file", b"content")
    temporary = f".file.{pid}.tmp"
    assert calls == [("sync", here), ("sync", temporary), ("rename", f"{temporary} file"), ("sync", "new")]
    calls.clear()
    temporary = f".folder.{pid}.tmp"
    aside = f".folder.{pid}.old.tmp"
    removal = [("rename", f"folder {aside}"), ("sync", here)]
    for replaced in ([], removal):
        with whole_folder(tmp_path / "folder") as folder:
            (folder / "a").write_text("a")
        content = [("sync", "a"), ("sync", temporary)]
        assert calls == [*content, *replaced, ("rename", f"{temporary} folder"), ("sync", here)]
        calls.clear()
    remove_folder(tmp_path / "folder")
    assert calls == removal


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with whole_folder(tmp_path / "folder") as folder:
            write_safetensors(folder / "a.safetensors", {"a": np.zeros(1, np.float32)})
        with whole_file(tmp_path / "file") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert modes == {"folder": 0o777 & ~umask, "a.safetensors": 0o666 & ~umask, "file": 0o666 & ~umask}
    assert read_safetensors(tmp_path / "folder" / "a.safetensors")["a"] == 0


def test_a_write_that_fails_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as stop, whole_file(tmp_path / "x.png"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert stop.value.filename == str(tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
