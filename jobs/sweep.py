"""A sweep as a job: `python -m jobs.sweep RECIPE [--set key=value] [...]` is `tlcore sweep RECIPE ...`.

Owns nothing but the way in. Called by `make sweep` and, on a cluster, by `make submit`.
"""

from __future__ import annotations

import sys

from tlcore.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
