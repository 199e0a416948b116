"""`tlcore caption`: what is said in a sound, or in one that is still being recorded, as captions with their times.

Owns this command; parse, call, print. Called by `cli.py`.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tlcore.commands.models import Checkpoint, check_new, load_trained
from tlcore.commands.options import DEFAULT_STORAGE, Storage
from tlcore.errors import RequestError

if TYPE_CHECKING:
    from tlcore.train.offline import TrainedModel

_TASKS: Final = ("speech-recognition", "speech-translation")


class Captions(StrEnum):
    """How captions are written."""

    srt = "srt"
    vtt = "vtt"


def add_to(app: typer.Typer) -> None:
    """Put this command among the others."""
    app.command()(caption)


def caption(
    checkpoint: Checkpoint,
    sound: Annotated[
        str,
        typer.Argument(
            metavar="SOUND",
            help="A file of sound, or - for raw samples from stdin (16 bits, one channel) as they come.",
        ),
    ],
    form: Annotated[Captions, typer.Option("--format", help="SubRip or WebVTT.")] = Captions.srt,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="A new file; else stdout.")] = None,
    rate: Annotated[int, typer.Option("--rate", min=1000, help="Samples per second of stdin.")] = 16_000,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Captions of what is said: words with their times, in lines and pauses; of stdin as soon as each piece has been said."""
    from tlcore.report.captions import VTT_HEAD, as_srt, as_vtt, captions

    if out is not None:
        check_new(out)
    trained = load_trained(checkpoint, storage)
    if trained.recipe.task not in _TASKS:
        raise RequestError(
            f"{checkpoint} was trained for {trained.recipe.task}, which says nothing of words",
            hint=f"captions are of {' and '.join(_TASKS)}",
        )
    answers = _answers(trained, sound, rate)
    first = list(islice(answers, 1))  # before there is a file: of a model that tells no times nothing is to be left
    written, write = 1, {Captions.srt: as_srt, Captions.vtt: as_vtt}[form]
    with contextlib.nullcontext(sys.stdout) if out is None else Path(out).open("x", encoding="utf-8") as stream:
        stream.write(VTT_HEAD if form is Captions.vtt else "")
        for answer, until_s in chain(first, answers):
            shown = captions(answer["words"], _between(answer), until_s)
            for block in write(shown, written):
                stream.write(block)
            stream.flush()
            written += len(shown)


def _answers(trained: TrainedModel, sound: str, rate: int) -> Iterator[tuple[Mapping[str, Any], float]]:
    """What is said and when, and until when: of a whole sound, or of each piece of stdin with times from its beginning.

    Raises RequestError: the model tells no times of words.
    """
    if sound != "-":
        yield _with_words(trained.predict([sound])[0], trained), math.inf
        return
    from tlcore.train.live import live_pieces

    for piece in live_pieces(sys.stdin.buffer, rate, trained.recipe.data.max_seconds):
        answer = _with_words(trained.predict([piece.sound])[0], trained)
        words = [
            {**word, "start_s": word["start_s"] + piece.start_s, "end_s": word["end_s"] + piece.start_s}
            for word in answer["words"]
        ]
        yield {**answer, "words": words}, piece.start_s + piece.length_s


def _with_words(answer: dict[str, Any], trained: TrainedModel) -> dict[str, Any]:
    if "words" not in answer:
        raise RequestError(
            f"{trained.recipe.model.source} does not tell when its words are said",
            hint="CTC models do, and Whisper where its generation_config.json has alignment_heads",
        )
    return answer


def _between(answer: Mapping[str, Any]) -> str:
    """What the text has between two words: nothing in some languages."""
    words = [word["word"].strip() for word in answer["words"]]
    return "" if len(words) > 1 and "".join(words) == answer["prediction"] else " "
