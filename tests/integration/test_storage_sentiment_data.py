"""The sentiment job on the real snippets into the real store. The package index or the cache must give the source distribution."""

from __future__ import annotations

import io

import pyarrow.parquet as pq
import pytest

from jobs import prepare_sentiment as job
from tlcore.errors import DataError
from tlcore.storage import ObjectStore

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def source():
    try:
        return job.fetch_sdist(job.ASSETS.expanduser())
    except DataError as error:
        pytest.skip(f"no sentiment data here: {error.message}")


def test_the_movie_snippets_are_cut_as_the_recipe_expects(s3_store: ObjectStore, capsys):
    assert job.main(["--destination", s3_store.url]) == 0
    assert "2,000 train (50% positive), 800 test (53% positive)" in capsys.readouterr().out
    tables = {name: pq.read_table(io.BytesIO(s3_store.get(f"movie/{name}"))).to_pylist() for name in job.FILES}
    assert {row["label"] for rows in tables.values() for row in rows} == {"positive", "negative"}
    texts = [{row["text"].casefold() for row in rows} for rows in tables.values()]
    assert not texts[0] & texts[1]
    written = {info.key: info.modified for info in s3_store.list()}
    assert job.main(["--destination", s3_store.url]) == 0
    assert "there already" in capsys.readouterr().out
    assert {info.key: info.modified for info in s3_store.list()} == written


@pytest.mark.parametrize("domain", sorted(job.DOMAINS))
def test_every_domain_reads(source, domain):
    split = job.cut(job.read_snippets(source, domain), domain)
    assert 800 <= len(split.test) <= 820 and 1900 <= len(split.train) <= 2020
    assert not {s.group for s in split.test} & {s.group for s in split.train}
