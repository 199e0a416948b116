"""One Ray for the whole test session, small and quiet."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import ray

CPUS = 4
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def ray_session():
    """A local Ray with four logical CPUs and no dashboard; its workers can import what stands beside the tests."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}},
    )
    yield
    ray.shutdown()
