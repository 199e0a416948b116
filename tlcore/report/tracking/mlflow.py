"""A sweep as runs of an MLflow experiment: one per trial, on the server that `MLFLOW_TRACKING_URI` names.

Owns the runs' names and tags: a resume finds its trials by `tlcore.sweep` and `tlcore.trial`. Credentials are MLflow's own
(`MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_TOKEN`, ...). Without a server MLflow keeps `mlflow.db` where the command runs.
Called by `displays.py`, in a thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any, Final

from tlcore.report.tracking.curves import BoardLost

_SWEEP, _TRIAL = "tlcore.sweep", "tlcore.trial"
_STATUS: Final = {"completed": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_PATIENCE: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's own defaults try a server that is not there for minutes."""


class Mlflow:
    """Runs of `experiment`, which is made if need be, for sweeps of the recipe's `name`.

    Raises BoardLost where the server does not answer or refuses.
    """

    def __init__(self, experiment: str, name: str) -> None:
        for key, value in _PATIENCE.items():
            os.environ.setdefault(key, value)
        from mlflow import MlflowClient

        for chatter in ("mlflow", "alembic"):  # after the import, which sets its own
            logging.getLogger(chatter).setLevel(logging.WARNING)
        self._name = self._sweep = name
        self._runs: dict[str, str] = {}
        self._running: set[str] = set()
        with _lost():
            self._client = MlflowClient()
            found = self._client.get_experiment_by_name(experiment)
            self._experiment = found.experiment_id if found else self._client.create_experiment(experiment)

    def open(self, began: str, trials: Sequence[str]) -> AbstractSet[str]:
        """Find the runs of this sweep."""
        self._sweep = f"{self._name}/{began}"
        page = None
        while True:
            with _lost():
                found = self._client.search_runs(
                    [self._experiment], f"tags.`{_SWEEP}` = '{self._sweep}'", max_results=1000, page_token=page
                )
            self._runs |= {run.data.tags[_TRIAL]: run.info.run_id for run in found}
            if not (page := found.token):
                return set(self._runs)

    def begin(self, trial: str, settings: Mapping[str, Any]) -> None:
        """Make the trial's run, or take it up again; MLflow keeps the settings that it was first given."""
        from mlflow.entities import Param

        self._running.add(trial)
        with _lost():
            if trial in self._runs:
                self._client.update_run(self._runs[trial], status="RUNNING")
                return
            tags = {_SWEEP: self._sweep, _TRIAL: trial}
            run = self._client.create_run(self._experiment, run_name=f"{self._sweep}/{trial}", tags=tags)
            self._runs[trial] = run.info.run_id
            self._client.log_batch(run.info.run_id, params=[Param(key, str(value)) for key, value in settings.items()])

    def write(self, trial: str, step: int, values: Mapping[str, float]) -> None:
        """Add points."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        points = [Metric(name, value, now_ms, step) for name, value in values.items()]
        with _lost():
            self._client.log_batch(self._runs[trial], metrics=points)

    def end(self, trial: str, kind: str, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """Mark the run as ended."""
        self._running.discard(trial)
        with _lost():
            self._client.set_terminated(self._runs[trial], _STATUS[kind])

    def close(self) -> None:
        """Mark what has not ended; a resume takes it up again."""
        for trial in sorted(self._running):
            with _lost():
                self._client.set_terminated(self._runs[trial], "KILLED")
        self._running.clear()


@contextmanager
def _lost() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        # the text of a failed request holds its URL, which may hold a password: not shown with --debug either
        code = getattr(error, "error_code", None) or type(error).__name__
        raise BoardLost(f"MLflow does not take it ({code}); MLFLOW_TRACKING_URI says where it is") from None
