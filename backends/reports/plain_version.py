"""Training steps from a Python file that ours are measured against: what `ict bench --plain FILE.py` times.

On the CPU they run in a process of their own, python -m ict_backends.reports.plain_version, as whoever wrote the file
would run them. In ours they would have what a backend sets for its whole process: torch's allocator keeping freed
memory makes `bench/plain_torch.py` a fifth to a third faster than it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ict_backends.errors import UsageError, UserError
from ict_core import Config

# So many more steps, and their losses.
Advance = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class PlainVersion:
    """A file with `make_step(backend, config, images, device)`, which gives a function that does a whole step more and
    returns its loss; and, if it likes, with `check(config)`, which raises where it does not know the settings.

    Attributes:
        backend: of `BACKENDS`, the one whose plain version is meant.
    """

    file: Path
    backend: str

    def check(self, config: Config) -> None:
        """Raise UsageError where the file is none, and whatever its own check does."""
        getattr(self._load(), "check", lambda config: None)(config)

    def make_advance(self, config: Config, images: np.ndarray, device: str) -> Advance:
        """From a configuration and [n, c, h, w] uint8 images to what does its steps, in this process."""
        step = self._load().make_step(self.backend, config, images, device)
        return lambda steps: np.array([step() for _ in range(steps)])

    @contextlib.contextmanager
    def in_own_process(self, config: Config, images: np.ndarray, device: str) -> Iterator[Advance]:
        """The same in another process, which ends with the context.

        Raises:
            UserError: it has ended by itself.
            RuntimeError: something that is no error of ours was raised there.
        """
        command, pipe = [sys.executable, "-P", "-m", "ict_backends.reports.plain_version"], subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)  # Ctrl-C is for ours
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def ask(message: Any) -> Any:
            try:
                pickle.dump(message, questions, protocol=5)
                questions.flush()
                answer = pickle.load(answers)
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                raise UserError(f"the plain version: its process has ended with {process.wait()}") from error
            if isinstance(answer, Exception):
                raise answer
            return answer

        try:
            ask((self, config, images, device))
            yield ask
        finally:
            process.kill()
            with contextlib.suppress(OSError):  # what it did not read
                questions.close()
            answers.close()
            process.wait()

    def _load(self) -> ModuleType:
        if not self.file.is_file():
            raise UsageError(f"--plain {self.file}: no such file")
        spec = importlib.util.spec_from_file_location("ict_plain", self.file)
        if spec is None or spec.loader is None:
            raise UsageError(f"--plain {self.file} must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UsageError(f"--plain {self.file} cannot be loaded: {type(error).__name__}: {error}") from error
        if not callable(getattr(module, "make_step", None)):
            raise UsageError(f"--plain {self.file} has no make_step(backend, config, images, device)")
        return module


def main() -> None:
    """Answer, by pickles, what `PlainVersion.in_own_process` asks, until it asks no more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the file prints is no answer
    advance = None
    while True:
        try:
            message = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: Any = None
        try:
            if advance is None:
                plain, *arguments = message
                advance = plain.make_advance(*arguments)
            else:
                answer = advance(message)
        except (UserError, ValueError) as error:
            answer = error
        except Exception as error:  # of a library, which may not be made again from its pickle
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    main()
