"""The sentiment snippets for benches that have their figures alone on standard output.

Owns that what the preparing says goes to standard error. Called by the benches of `search` and `select`.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

from jobs import prepare_sentiment


def prepare_snippets(directory: Path, domain: str = "movie") -> Path:
    """Fetch a domain's snippets once and write them below a directory; where train.parquet and test.parquet are. Raises
    RuntimeError."""
    with redirect_stdout(sys.stderr):
        status = prepare_sentiment.main(["--destination", str(directory), "--domain", domain])
    if status != 0:
        raise RuntimeError(
            f"the {domain} snippets could not be prepared: exit status {status}, and standard error says why"
        )
    return directory / domain
