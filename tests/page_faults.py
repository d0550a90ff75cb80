"""How many new pages freed memory costs, for programs that tests run in a process of their own.

Loaded as `page_faults` through pytest's `pythonpath`.
"""

from __future__ import annotations

import resource

_ARRAYS = 20
# The pages of as many arrays of 64 MiB, each of which glibc takes from the system unless it is told to keep it.
PAGES = _ARRAYS * 2**26 // resource.getpagesize()
# Defines `faults()`: the pages that these arrays cost.
SOURCE = f"""
import resource, torch

def faults():
    for _ in range(10):  # until the heap has found its size
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({_ARRAYS}):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""
