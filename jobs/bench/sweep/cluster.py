"""The Ray of a sweep bench: small, quiet, and able to import the benches."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[3])


def start_ray(cpus: int, environment: Mapping[str, str] | None = None) -> None:
    """A local Ray with so many logical CPUs; `environment` goes to all of its processes."""
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"})
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": ROOT, **(environment or {})}},
    )
    logging.getLogger("ray").setLevel(logging.ERROR)
