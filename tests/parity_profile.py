"""How many examples tests/parity draws of what has to be compiled anew for each."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# All that the profile says (tests/conftest.py), but for a part of its examples: 14 in `ci`, 2 in `dev`.
COMPILED = settings(
    max_examples=settings().max_examples // 7,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
