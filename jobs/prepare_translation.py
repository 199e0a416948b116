"""Put English texts with their French into the store, and a small untrained translator that knows their letters.

    python -m jobs.prepare_translation --destination s3://tlcore/data/translation

Owns where the pairs come from, how they are cut, and the sizes of the model. The pairs are the prompts of the Asterisk telephone
exchange (CC-BY-SA-3.0) and the captions of the drawing program Tux Paint (GPL-2+ and freer), both from Debian's packages, checked
against pinned SHA-256s. No English text and no French one stands in both parts. Many texts are alike all the same ("The letter m.",
"The letter e."), so scores on the test are those of such texts. The model is a Marian of 3.5 M parameters without weights, to be
trained with `transfer.strategy: scratch`; its vocabulary is learned from the training part alone. `SOURCE.json` is written last and
holds the digests of what was written: where it matches, a second run changes nothing and ends within seconds.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs import prepare_photos as photos
from jobs.fetch import ASSETS, fetch_by_apt, unpack_deb
from jobs.prepared import Made, prepare, to_parquet
from tlcore.errors import DataError

PROMPTS: Final = {
    "asterisk-core-sounds-en": {"1.6.1-1": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"},
    "asterisk-core-sounds-fr": {"1.6.1-1": "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056"},
}
MODEL_FOLDER: Final = "marian-mini"
FILES: Final = ("train.parquet", "test.parquet")
COLUMNS: Final = ("id", "text", "target")
TEST_PAIRS: Final = 200
VOCABULARY: Final = 2000
MOST_WORDS: Final = 40
_STAMPS: Final = "usr/share/tuxpaint/stamps"
_FRENCH: Final = "fr.utf8="
_NO_SPEECH: Final = re.compile(r"[\[\]<>()]")
_ANOTHER_NAME: Final = re.compile(r"\b[a-z]+(-[a-z]+)+: ")
"""In a prompt's text: the next line of the listing, which lost its line break."""
_SPECIAL: Final = ("<pad>", "</s>", "<unk>")
# Raise when cut, vocabulary or model change, so that what was made before is made again.
_CUT: Final = 1


@dataclass(frozen=True)
class Pair:
    """An English text and its French."""

    id: str
    text: str
    target: str

    @property
    def said(self) -> tuple[str, str]:
        """What tells two pairs apart, in each language."""
        return _words(self.text), _words(self.target)


def main(arguments: Sequence[str] | None = None) -> int:
    return prepare("prepare_translation", str(__doc__), _source(), make, ASSETS, arguments)


def make(assets: Path) -> Made:
    """All that is left in the store. Raises DataError."""
    train, test = cut(fetch_pairs(assets))
    files = {name: to_parquet(part, COLUMNS) for name, part in zip(FILES, (train, test), strict=True)}
    files |= {f"{MODEL_FOLDER}/{name}": content for name, content in make_model(train).items()}
    return files, f"{len(train)} pairs to train on, {len(test)} to test with, and {MODEL_FOLDER}"


def fetch_pairs(assets: Path) -> list[Pair]:
    """Every pair of both packages, each once. Raises DataError."""
    archives = [fetch_by_apt(assets, package, versions) for package, versions in PROMPTS.items()]
    archives.append(fetch_by_apt(assets, photos.PACKAGE, photos.SHA256))
    with tempfile.TemporaryDirectory() as directory:
        for archive in archives:
            unpack_deb(archive, Path(directory))
        return once([*read_prompts(Path(directory)), *read_captions(Path(directory) / _STAMPS)])


def read_prompts(root: Path) -> list[Pair]:
    """The prompts of unpacked packages that are speech in both languages, by name."""
    english, french = (_listing(root, language) for language in ("en", "fr"))
    return [
        Pair(name, english[name], french[name])
        for name in sorted(english.keys() & french.keys())
        if not any(_NO_SPEECH.search(text) or _ANOTHER_NAME.search(text) for text in (english[name], french[name]))
    ]


def _listing(root: Path, language: str) -> dict[str, str]:
    name = f"asterisk-core-sounds-{language}"
    path = root / f"usr/share/doc/{name}/core-sounds-{language}.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    parts = [line.partition(":") for line in lines if not line.startswith(";")]
    return {name.strip(): " ".join(text.split()) for name, _, text in parts if text.strip()}


def read_captions(stamps: Path) -> list[Pair]:
    """The captions below a folder of stamps that have a French one, by path: the first line is English."""
    pairs = []
    for path in sorted(stamps.rglob("*.txt")):
        english, *others = path.read_text("utf-8").splitlines() or [""]
        french = next((line.removeprefix(_FRENCH) for line in others if line.startswith(_FRENCH)), "")
        if english.strip() and french.strip():
            texts = (" ".join(english.split()), " ".join(french.split()))
            pairs.append(Pair(path.relative_to(stamps).with_suffix("").as_posix(), *texts))
    return pairs


def once(pairs: Sequence[Pair]) -> list[Pair]:
    """The first of each pair of like words, without those that are too long or have none in one language."""
    found: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        if all(0 < len(words.split()) <= MOST_WORDS for words in pair.said):
            found.setdefault(pair.said, pair)
    return list(found.values())


def cut(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """(to train on, to test with): about `TEST_PAIRS` to test with, in hash order of their English; to train on, all others that
    have nothing that is said in those. Raises DataError."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.said[0], []).append(pair)
    rest: list[Pair] = []
    test: list[Pair] = []
    for words in sorted(groups, key=lambda words: hashlib.sha256(words.encode()).digest()):
        (test if len(test) < TEST_PAIRS else rest).extend(groups[words])
    told = {pair.said[1] for pair in test}
    train = [pair for pair in rest if pair.said[1] not in told]
    if not train:
        raise DataError(f"there are {len(pairs)} pairs, too few to hold {TEST_PAIRS} out")
    return train, test


def make_model(train: Sequence[Pair]) -> dict[str, bytes]:
    """Configuration and tokenizer, by file name; one vocabulary for both languages."""
    from transformers import MarianConfig

    with tempfile.TemporaryDirectory() as directory:
        tokenizer = make_tokenizer([text for pair in train for text in (pair.text, pair.target)])
        tokenizer.save_pretrained(directory)
        pad, end, _ = (tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL)
        MarianConfig(
            vocab_size=len(tokenizer),
            d_model=192,
            **{f"{side}_layers": 3 for side in ("encoder", "decoder")},
            **{f"{side}_attention_heads": 6 for side in ("encoder", "decoder")},
            **{f"{side}_ffn_dim": 768 for side in ("encoder", "decoder")},
            max_position_embeddings=256,
            scale_embedding=True,
            pad_token_id=pad,
            eos_token_id=end,
            bos_token_id=None,
            decoder_start_token_id=pad,
            forced_eos_token_id=None,
            architectures=["MarianMTModel"],
        ).save_pretrained(directory)
        return {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())}


def make_tokenizer(texts: Sequence[str]) -> Any:
    """Pieces of words by byte pairs, so that no letter is unknown; each text ends with </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    pad, end, unknown = _SPECIAL
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    # the blank that was put before the first word goes again
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=list(_SPECIAL), initial_alphabet=letters, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=end, unk_token=unknown, model_max_length=256
    )


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _source() -> dict[str, Any]:
    return {
        "made_from": {**PROMPTS, photos.PACKAGE: photos.SHA256},
        "cut": _CUT,
        "cite": "Asterisk core sounds, CC-BY-SA-3.0; Tux Paint stamps, tuxpaint.org",
    }


if __name__ == "__main__":
    sys.exit(main())
