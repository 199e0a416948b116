"""One Ray on this machine, small and quiet: what the benches and the integration tests run in.

Owns how it is started; who starts it calls `ray.shutdown`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start_ray(cpus: int, environment: Mapping[str, str] | None = None, also: tuple[Path, ...] = ()) -> None:
    """Start it with so many logical CPUs and no dashboard.

    Args:
        environment: goes to all of its processes.
        also: directories that its processes can import from, before the repository's root.
    """
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"})
    import ray

    path = os.pathsep.join(map(str, (*also, ROOT)))
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": path, **(environment or {})}},
    )
    logging.getLogger("ray").setLevel(logging.ERROR)
