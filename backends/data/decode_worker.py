"""A process that decodes images for another one: python -m ict_backends.data.decode_worker.

It reads chunks from its standard input and writes what came of each to its standard output, as pickles: both ends are
of the same program. It ends where its input does.
"""

from __future__ import annotations

import pickle
import sys

from ict_backends.data.decode import quiet
from ict_backends.data.source import decode_chunk


def main() -> None:
    """Decode until there is no more."""
    with quiet():
        while True:
            try:
                chunk = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                found = decode_chunk(chunk)
            except Exception as error:  # raised where the chunk came from
                found = error
            try:
                pickle.dump(found, sys.stdout.buffer, protocol=5)
                sys.stdout.buffer.flush()
            except BrokenPipeError:  # nobody waits for it any more
                return


if __name__ == "__main__":
    main()
