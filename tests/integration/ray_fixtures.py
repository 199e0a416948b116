"""One Ray for the whole test session, small and quiet."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from jobs.bench.small_ray import start_ray

CPUS = 4
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def ray_session():
    """A local Ray with four logical CPUs; its workers can import what stands beside the tests."""
    start_ray(CPUS, also=(HERE,))
    yield
    ray.shutdown()
