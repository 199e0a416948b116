"""Why a peer cannot be measured here. Called by the benches of checkpoints and of the network."""

from __future__ import annotations

from importlib.util import find_spec


def s3torchconnector_absent() -> str:
    """What is missing for s3torchconnector's DCP, which needs its extra; empty where nothing is."""
    missing = [name for name in ("s3torchconnector", "tenacity") if find_spec(name) is None]
    return f"{missing[0]} is not installed (pip install 's3torchconnector[dcp]')" if missing else ""
