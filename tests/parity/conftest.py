"""Compile quickly: these networks run for microseconds, and XLA's optimiser would take most of the time."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
