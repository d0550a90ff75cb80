"""How many examples tests/parity draws of what has to be compiled anew for each."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# All that the profile says (tests/conftest.py), but for a fifth of its examples: 12 in `ci`, 4 in `dev`.
COMPILED = settings(
    max_examples=settings().max_examples // 5,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
