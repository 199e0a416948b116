"""What the recovery bench kills as its driver: `python -m jobs.bench.recovery.driver RECIPE LOGS [--resume]`.

Owns only the call: it is `tlcore sweep RECIPE [--resume]` with another session class and no terminal. Started by `ground.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tlcore.errors import TlcoreError
from tlcore.recipe import recipe_from_dict
from tlcore.sweep import SweepOptions, run_sweep

SESSION = "jobs.bench.recovery.session:LoggedSession"


def main(arguments: Sequence[str]) -> int:
    recipe_file, logs, *words = arguments
    recipe = recipe_from_dict(json.loads(Path(recipe_file).read_text()))
    try:
        run_sweep(recipe, SweepOptions(resume="--resume" in words, logs=Path(logs), session=SESSION))
    except TlcoreError as error:
        print(f"driver: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
