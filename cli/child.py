"""Run an `ict` command that ends with the process that started it: python -m ict_cli.child COMMAND ...

The process holds the other end of a pipe at the command's standard input. However it ends, the system closes that end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from ict_cli.main import run


def _end_with_parent() -> None:
    """Wait for the end of standard input, and stop this process then as by SIGTERM: training writes a checkpoint."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    run(sys.argv[1:])
