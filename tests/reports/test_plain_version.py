"""Plain versions in a process of their own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ict_backends.errors import UserError
from ict_backends.reports.plain_version import PlainVersion
from ict_core import Config, ConfigError

STEPS = """
import os
from ict_core import ConfigError

def make_step(backend, config, images, device):
    print("this is no answer")
    if device == "refused":
        raise ConfigError("not these settings")
    count = 0

    def step():
        nonlocal count
        count += 1
        if device == "fails":
            raise KeyError("a fault of the file")
        if device == "ends":
            os._exit(3)
        return {"backend": len(backend), "images": images.sum(), "process": os.getpid()}.get(device, count)

    return step
"""


@pytest.fixture
def version(tmp_path: Path) -> PlainVersion:
    (tmp_path / "steps.py").write_text(STEPS)
    return PlainVersion(tmp_path / "steps.py", "torch")


IMAGES = np.arange(6)


def test_steps_go_on_in_another_process(version: PlainVersion, capfd: pytest.CaptureFixture[str]) -> None:
    with version.in_own_process(Config(), IMAGES, "cpu") as advance:
        assert advance(2).tolist() == [1, 2]
        assert advance(1).tolist() == [3]
    assert capfd.readouterr() == ("", "this is no answer\n")
    with version.in_own_process(Config(), IMAGES, "process") as advance:
        (other,) = advance(1)
    assert other != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(int(other), 0)


def test_the_arguments_arrive(version: PlainVersion) -> None:
    with version.in_own_process(Config(), IMAGES, "images") as advance:
        assert advance(1) == [15]
    with version.in_own_process(Config(), IMAGES, "backend") as advance:
        assert advance(1) == [5]


def test_both_ways_are_the_same_steps(version: PlainVersion) -> None:
    with version.in_own_process(Config(), IMAGES, "cpu") as advance:
        np.testing.assert_array_equal(advance(3), version.make_advance(Config(), IMAGES, "cpu")(3))


def test_what_it_raises_is_raised_here(version: PlainVersion) -> None:
    with pytest.raises(ConfigError, match="not these settings"), version.in_own_process(Config(), IMAGES, "refused"):
        pass
    with version.in_own_process(Config(), IMAGES, "fails") as advance:
        for _ in range(2):  # it is there still
            with pytest.raises(RuntimeError, match="KeyError: 'a fault of the file'"):
                advance(1)


def test_a_process_that_has_ended_is_told_of_in_one_line(version: PlainVersion) -> None:
    with version.in_own_process(Config(), IMAGES, "ends") as advance:
        with pytest.raises(UserError, match="^the plain version: its process has ended with 3$"):
            advance(1)
        with pytest.raises(UserError, match="has ended with 3"):
            advance(1)
