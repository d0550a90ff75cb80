"""The plain version: training steps from a Python file, which `ict bench --plain FILE.py` times beside ours.

On the CPU they run in a process of their own, python -m ict_backends.reports.plain_version, as the file's author would
run them. In our process they would profit from the settings that a backend makes for the whole process: an allocator
that keeps freed memory makes `bench/plain_torch.py` a fifth to a third faster than it is.
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

# A function that does the given number of steps more, and returns their losses, [steps].
Advance = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class PlainVersion:
    """A plain version of training.

    Its file has a function `make_step(backend, config, images, device)`; this returns a function that does one whole
    step more and returns its loss. The file may also have a function `check(config)`, which raises an error for
    settings that the file does not know.

    Attributes:
        file: the Python file.
        backend: the name, in `BACKENDS`, of the backend whose plain version is meant.
    """

    file: Path
    backend: str

    def check(self, config: Config) -> None:
        """Raise UsageError if the file cannot be loaded or has no `make_step`; then call the file's own `check`."""
        getattr(self._load(), "check", lambda config: None)(config)

    def make_advance(self, config: Config, images: np.ndarray, device: str) -> Advance:
        """Prepare the plain version's training in this process.

        Args:
            config: the settings.
            images: [n, c, h, w] uint8.
            device: name of the device.

        Returns:
            A function that does a number of steps and returns their losses, [steps].
        """
        step = self._load().make_step(self.backend, config, images, device)
        return lambda steps: np.array([step() for _ in range(steps)])

    @contextlib.contextmanager
    def in_own_process(self, config: Config, images: np.ndarray, device: str) -> Iterator[Advance]:
        """A context that yields the function of `make_advance` in another process, which ends with the context.

        Raises:
            UserError: the process has ended by itself.
            RuntimeError: an error of another kind was raised in it.
        """
        command, pipe = [sys.executable, "-P", "-m", "ict_backends.reports.plain_version"], subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)  # without Ctrl-C
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
            with contextlib.suppress(OSError):  # the process has not read everything
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
    """Answer the requests of `PlainVersion.in_own_process`, by pickles, until its pipe is closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output that the file prints must not mix with the answers
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
        except Exception as error:  # exceptions of libraries may not survive pickling
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    main()
