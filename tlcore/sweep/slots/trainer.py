"""The Ray Train run that a worker group is: how it is configured, and without what.

Owns Ray Train's names and settings. Called by `group.py`, in a thread of the slot.

Ray Train starts four processes beside each run's controller and ranks. In one of them the ranks meet. The other three are left
out here: 110 MB and 3 s of processor time each. A group of two ranks on two cores takes 25.5 s of processor time to start for 32 to
33.5 s with them, and is there after 17 s for 19 to 20 (two starts each, interleaved). They are

* its cleaner of placement groups, on the head. Where a controller was killed, it stays for ever: without a dashboard it cannot
  ask whether the controller lives, and when it knows that it does not, it ends its thread in place of its process. `places.py`
  frees what is left, also of groups whose workers had not started yet.
* the manager of `ray.data` sets, of which there are none here.
* the watcher for nodes that are about to be taken away, whose word nobody asks for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from tlcore.sweep.cluster.resources import Shape, label_selector
from tlcore.sweep.slots.controller import NoRestart, ProcessGroup, StartWatch
from tlcore.sweep.slots.worker import worker_loop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LEFT_OUT = (PlacementGroupCleanerCallback, DatasetsCallback)
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # by default 2 s, which are most of a recovery
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class _Trainer(DataParallelTrainer):
    """Not `TorchTrainer`, which is this with a backend that loads torch here too: see `controller.py`."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if not isinstance(each, _LEFT_OUT)]


def run_ranks(
    shape: Shape,
    loop: Mapping[str, Any],
    name: str,
    scratch: Path,
    collective_s: int,
    avoid: Sequence[str],
    environment: Mapping[str, str],
) -> None:
    """Start ranks that run `worker_loop`, start them again when they are lost, and return when they have left.

    Args:
        loop: what `worker_loop` is given; its `mailbox` learns how starting goes.
        name, scratch: of the run, and where Ray Train may write its few small files.
        collective_s: after which a collective has failed.
        avoid: nodes that get no worker, by Ray's id.
        environment: of every rank, before its first import.

    Raises what Ray Train ends with.
    """
    os.environ.update(_SETTINGS)  # Ray Train propagates its own from here to its controller
    mailbox = loop["mailbox"]
    _Trainer(
        worker_loop,
        train_loop_config=dict(loop),
        backend_config=ProcessGroup("nccl" if shape.gpus else "gloo", collective_s),
        scaling_config=ScalingConfig(
            num_workers=shape.workers,
            use_gpu=shape.gpus > 0,
            resources_per_worker=shape.per_worker,
            placement_strategy=shape.placement.upper(),
            label_selector=label_selector(shape, avoid),
            accelerator_type=shape.accelerator,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[NoRestart(mailbox), StartWatch(mailbox)],
            worker_runtime_env={"env_vars": dict(environment)},
        ),
    ).fit()
