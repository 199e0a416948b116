"""One trial as a job: `python -m jobs.train RECIPE [--set key=value] [...]` is `tlcore train RECIPE ...`.

Owns nothing but the way in. Called by `make train` and by `ray job submit`.
"""

from __future__ import annotations

import sys

from tlcore.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
