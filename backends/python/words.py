"""The errors of the command line in the words of Python."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from ict_backends.errors import UserError

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
# An option of the command line; and commands that the user is told to type, which stay as they are.
_OPTION = re.compile(r"`[^`]*`|\bict [a-z][^;]*|--([a-z][a-z-]*)")


def in_python_words(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """A function whose errors name its parameters as Python does: `clip_steps`, where commands have --clip-steps.

    The checks, and so their sentences, are those of the commands.
    """
    parameters = inspect.signature(function).parameters

    def name_in_python(match: re.Match[str]) -> str:
        name = (match[1] or "").replace("-", "_")
        return name if name in parameters else match[0]

    @wraps(function)
    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            error.args = (_OPTION.sub(name_in_python, str(error)),)
            raise

    return call
