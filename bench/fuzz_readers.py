"""Reading of mutated files, as a test of the readers: python bench/fuzz_readers.py [--files N] [--seed S] [--only EDM].

Files of each format of data (tests/data_samples.py) and of EDM's networks (tests/edm_files.py) are mutated and read. A
file must be refused in one line, or give what it holds: the same if the format has checksums, else also other numbers,
as many. Anything else is a fault, as is a file that takes more than ten seconds or more memory than --limit, or whose
code is executed. Files with faults are kept, and make the exit code 1.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

_SECONDS = 10


class TooSlowError(BaseException):
    """Raised when reading takes too long; no `except Exception` of the readers catches it."""


def _stop(*_: object) -> None:
    raise TooSlowError(f"more than {_SECONDS} seconds")


@click.command()
@click.option("--files", default=10_000, show_default=True, help="How many mutated files to read.")
@click.option("--seed", default=0, show_default=True)
@click.option("--limit", default=4096, show_default=True, help="Of the memory of the process, in MiB.")
@click.option("--only", default="", help="Only formats with this in their names, such as EDM.")
@click.option("--keep", default="fuzz-faults", show_default=True, help="Folder for the files that are faults.")
def main(files: int, seed: int, limit: int, only: str, keep: str) -> None:
    """Read mutated files, and count the outcomes for each format."""
    from data_samples import make_samples, mutate
    from edm_files import make_edm_samples

    resource.setrlimit(resource.RLIMIT_AS, (limit * 2**20, limit * 2**20))
    signal.signal(signal.SIGALRM, _stop)
    logging.disable()  # what a set leaves out
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        samples: dict[str, Any] = {**make_samples(Path(folder)), **make_edm_samples(Path(folder))}
        samples = {name: sample for name, sample in samples.items() if only in name}
        start, counts, slowest, faults = _peak(), defaultdict(Counter), defaultdict(float), 0
        for i in range(files):
            name = list(samples)[i % len(samples)]
            content = mutate(samples[name].content, np.random.default_rng([seed, i]))
            begin = time.perf_counter()
            signal.alarm(_SECONDS)
            try:
                outcome = samples[name].outcome(content)
            except (Exception, TooSlowError) as error:
                outcome, faults = "FAULT", faults + 1
                Path(keep).mkdir(exist_ok=True)
                (Path(keep) / f"{seed}-{i}-{samples[name].file.name}").write_bytes(content)
                click.echo(f"{name}, seed {seed}, file {i}: {type(error).__name__}: {error}")
            signal.alarm(0)
            counts[name][outcome] += 1
            slowest[name] = max(slowest[name], time.perf_counter() - begin)
            samples[name].file.write_bytes(samples[name].content)
    outcomes = ("refused", "unchanged", "changed", "FAULT")
    click.echo(f"{'format':14}{'files':>10}" + "".join(f"{name:>10}" for name in outcomes) + f"{'slowest':>10}")
    for name, found in counts.items():
        numbers = "".join(f"{number:10}" for number in (found.total(), *(found[key] for key in outcomes)))
        click.echo(f"{name:14}{numbers}{slowest[name]:9.2f}s")
    click.echo(f"{files} files; peak memory {start} MiB before the first and {_peak()} MiB after the last")
    sys.exit(faults > 0)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
