"""`python -m tlcore` is the `tlcore` command."""

from __future__ import annotations

import sys

from tlcore.cli import main

if __name__ == "__main__":
    sys.exit(main())
