"""Ray in this process without its chatter: connect or start, everything it says into files, and all of it taken back at the end.

Owns `ray.init`, the logging of the driver's process and the environment Tune reads there. Workers' output stays in Ray's own
session directory, to which the log directory links. Called by `runner.py`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO, cast

import ray

from tlcore.errors import SweepError

_LOGGERS = ("ray", "py.warnings")
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
}
"""Set for the time of a sweep. Metrics are checked in the slot, with a better message; Tune's state files are never read. Ray
Train's interval is what `group.py` sets, which the driver's own group (`examination.py`) does here."""


@contextmanager
def quiet_ray(log_directory: Path) -> Iterator[Path]:
    """Ray, connected (RAY_ADDRESS), found running, or started for the time of this block; gives Ray's own log directory.

    What was started here is shut down; what was there stays.
    """
    log_directory.mkdir(parents=True, exist_ok=True)
    file = log_directory / "driver.log"
    with _environment(), _logging_to(file) as log, _sieved(log) as sieve:
        started = not ray.is_initialized()
        if started:
            _connect()
        try:
            yield _link_session_logs(log_directory)
        finally:
            if started:
                sieve.mute_this_thread()  # Ray prints the warnings that it held back when it goes
                ray.shutdown()


def _connect() -> None:
    address = os.environ.get("RAY_ADDRESS")
    environment = {"env_vars": {key: _ENVIRONMENT[key] for key in ("RAY_CHDIR_TO_TRIAL_DIR",)}}
    common = {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": False}
    try:
        if address and address != "local":
            ray.init(address=address, runtime_env=environment, **common)
        else:
            ray.init(
                address="local", num_cpus=os.cpu_count(), include_dashboard=False, runtime_env=environment, **common
            )
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a local Ray"
        raise SweepError(
            f"cannot reach or start {where}: {error}", hint="see `ray status`; unset RAY_ADDRESS to run on this machine"
        ) from error


def _link_session_logs(log_directory: Path) -> Path:
    node = ray._private.worker.global_worker.node
    session = Path(node.get_session_dir_path(), "logs") if node is not None else log_directory
    link = log_directory / "ray"
    with suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(session, target_is_directory=True)
    return session


@contextmanager
def _environment() -> Iterator[None]:
    before = {key: os.environ.get(key) for key in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


class _Sieve:
    """Standard output without what Ray's own threads print (a worker died, a node left): that goes to the log."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log = stream, log
        self._muted: int | None = None

    def mute_this_thread(self) -> None:
        """From now on what the calling thread prints goes to the log too."""
        self._muted = threading.get_ident()

    def write(self, text: str) -> int:
        """Write to where this thread's output belongs."""
        ray_speaks = threading.current_thread().name.startswith("ray_") or threading.get_ident() == self._muted
        return (self._log if ray_speaks else self._stream).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _sieved(log: TextIO) -> Iterator[_Sieve]:
    sieve = _Sieve(sys.stdout, log)
    with redirect_stdout(cast(TextIO, sieve)):
        yield sieve


@contextmanager
def _logging_to(path: Path) -> Iterator[TextIO]:
    """Everything that the named loggers and Python's warnings would print goes to a file, which is given."""
    file = path.open("a")
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in (*_LOGGERS, *_chatty())]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    last_resort = logging.lastResort
    with warnings.catch_warnings():
        logging.captureWarnings(True)
        logging.lastResort = handler  # ray.init takes the handlers off its logger, and then warns
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        try:
            yield file
        finally:
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate
            logging.captureWarnings(False)
            logging.lastResort = last_resort
            file.close()


def _chatty() -> list[str]:
    """Ray's own loggers that have handlers beside the root's."""
    names = logging.root.manager.loggerDict
    return [name for name in names if name.startswith("ray.") and logging.getLogger(name).handlers]
