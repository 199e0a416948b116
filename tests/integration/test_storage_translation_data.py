"""The real telephone prompts in both languages. Debian's package index or the cache must give their two packages, 46 kB."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import prepare_translation as job
from jobs.fetch import ASSETS, fetch_by_apt, unpack_deb
from tlcore.errors import DataError

pytestmark = pytest.mark.integration


def test_the_prompts_pair_up(tmp_path: Path) -> None:
    try:
        for package, versions in job.PROMPTS.items():
            unpack_deb(fetch_by_apt(ASSETS.expanduser(), package, versions), tmp_path)
    except DataError as error:
        pytest.skip(f"no prompts here: {error.message}")
    pairs = job.once(job.read_prompts(tmp_path))
    assert len(pairs) == 459
    assert ("thank you", "merci") in {pair.said for pair in pairs}
    assert not [pair for pair in pairs if "[" in pair.text + pair.target or "vm-" in pair.text + pair.target]
