"""What the sweep's processes load: torch in the ranks alone, Tune and Train only where they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

HEAVY = ("torch", "deepspeed", "transformers")


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        pytest.param(("slots.mailbox", "slots.board"), (*HEAVY, "ray.tune", "ray.train"), id="actors"),
        pytest.param(("slots.worker",), (*HEAVY, "ray.tune"), id="rank-before-its-first-trial"),
        pytest.param(("slots.controller",), (*HEAVY, "ray.tune"), id="train-controller"),
        pytest.param(("slots.slot", "runner"), HEAVY, id="slot-and-driver"),
    ],
)
def test_loads_only_what_it_needs(modules, unwanted):
    names = ", ".join(f"tlcore.sweep.{module}" for module in modules)
    script = f"import sys, {names}\nprint([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=1200)
    assert done.stdout.strip() == "[]"


def test_rays_own_backend_still_loads_torch():
    """When this fails, `controller.py` has lost its reason: use `TorchTrainer` again."""
    script = "import sys, ray.train.torch\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=1200)
    assert done.stdout.strip() == "True"
