"""A plain version of the training steps, from a Python file, that ours are compared with: `ict bench --plain FILE.py`.

On the CPU the plain steps run in a process of their own, python -m ict_backends.reports.plain_version, as the author of
the file would run them. In our process they would profit from what a backend sets for the whole process: the torch
backend has the allocator keep freed memory, with which `bench/plain_torch.py` is a fifth to a third faster than by
itself.
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

# Does a number of further steps, and returns their losses.
Advance = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class PlainVersion:
    """A Python file with a plain version of the training step.

    The file defines `make_step(backend, config, images, device)`, which returns a function that does one further
    training step and returns its loss. It may also define `check(config)`, which raises if it does not support the
    settings.

    Attributes:
        file: the path of the file.
        backend: the name, of `BACKENDS`, of the backend whose plain version is to be used.
    """

    file: Path
    backend: str

    def check(self, config: Config) -> None:
        """Raise UsageError if the file is no plain version; then call its own `check`, which may raise, too."""
        getattr(self._load(), "check", lambda config: None)(config)

    def make_advance(self, config: Config, images: np.ndarray, device: str) -> Advance:
        """A function that does training steps in this process, on images [n, c, h, w] uint8."""
        step = self._load().make_step(self.backend, config, images, device)
        return lambda steps: np.array([step() for _ in range(steps)])

    @contextlib.contextmanager
    def in_own_process(self, config: Config, images: np.ndarray, device: str) -> Iterator[Advance]:
        """A function that does training steps, as `make_advance` gives, in another process that ends with the context.

        Raises:
            UserError: the process has ended by itself, or the plain version raised this error.
            ValueError: the plain version raised this error.
            RuntimeError: the plain version raised any other error.
        """
        command, pipe = [sys.executable, "-P", "-m", "ict_backends.reports.plain_version"], subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)  # Ctrl-C is only for ours
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
            with contextlib.suppress(OSError):  # closing flushes what the process did not read
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
    """Answer the pickled requests of `PlainVersion.in_own_process` from stdin until they end, on stdout."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the file prints must not mix with the answers
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
        except Exception as error:  # an error of a library may not survive pickling
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    main()
