"""A real Ray Train run whose workers are ranks of the checkpoint bench.

Owns Ray's start and the trainer. Started by `group.py` as a process of its own, with the bench's port and the number of
ranks; the workers connect to the bench like any other rank and are measured long after their start.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any


def work(config: dict[str, Any]) -> None:
    """Ray Train's function: one rank."""
    from jobs.bench.checkpoint.worker import serve

    serve(config["port"])


def main() -> None:
    port, world_size = int(sys.argv[1]), int(sys.argv[2])
    root = str(Path(__file__).resolve().parents[3])
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "DS_ACCELERATOR": "cpu", "PYTHONPATH": root}
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from tlcore.storage import EmbeddedStore

    environment = EmbeddedStore().env()
    endpoint = environment["AWS_ENDPOINT_URL"].removeprefix("http://")
    # Keys travel in the environment, as they would on a cluster; the endpoint in the URI, where pyarrow wants it.
    os.environ |= {name: environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    ray.init(
        address="local",
        num_cpus=world_size,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    TorchTrainer(
        work,
        train_loop_config={"port": port},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=world_size, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="peer",
            storage_path=f"s3://tlcore/bench/ray?scheme=http&endpoint_override={endpoint}&region={environment['AWS_REGION']}",
        ),
    ).fit()


if __name__ == "__main__":
    main()
