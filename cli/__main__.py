"""Run the `ict` command as `python -m ict_cli`."""

from ict_cli.main import run

run()
