"""Captions: which words are shown together, how long, and the files that players read; pieces of sound as it comes."""

from __future__ import annotations

import io
import re
import sys
import wave
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typed_commands import run, settle, store_untrained

from tests.families import speech
from tests.stored_model import store_model
from tlcore.recipe import recipe_from_dict
from tlcore.report.captions import LEAST_S, LINE_CHARACTERS, MOST_S, as_srt, as_vtt, captions
from tlcore.storage import open_store
from tlcore.tasks import build_task
from tlcore.train.live import live_pieces

pytestmark = pytest.mark.unit


def said(text: str, start_s: float = 0.0, word_s: float = 0.3) -> list[dict[str, Any]]:
    return [
        {"word": word, "start_s": start_s + at * word_s, "end_s": start_s + (at + 1) * word_s}
        for at, word in enumerate(text.split())
    ]


def test_a_caption_ends_with_its_sentence_at_a_pause_and_where_it_is_full() -> None:
    words = [*said("One sentence. Another one"), *said("after a pause", 5.0), *said("word " * 40, 6.0)]
    texts = [each.text for each in captions(words)]
    assert texts[:2] == ["One sentence.", "Another one"]
    assert texts[2].startswith("after a pause word word")
    assert all(len(line) <= LINE_CHARACTERS for text in texts for line in text.split("\n"))
    assert " ".join(" ".join(texts).split()) == " ".join(word["word"] for word in words)


def test_two_lines_are_of_about_one_length_and_a_word_without_end_is_no_trap() -> None:
    [both] = captions(said("a caption of some words that are too many for one line", word_s=0.2))
    first, second = both.text.split("\n")
    assert abs(len(first) - len(second)) < 10
    [endless] = captions(said("x" * 300))
    assert endless.text.replace("\n", "") == "x" * 300


def test_captions_stay_long_enough_to_be_read_unless_the_next_one_begins() -> None:
    short, brief, _ = captions([*said("Yes.", 1.0, 0.1), *said("No.", 3.0, 0.1), *said("But", 3.2, 0.1)])
    assert (short.start_s, short.end_s) == (1.0, pytest.approx(1.0 + LEAST_S))
    assert brief.end_s == 3.2


@given(
    words=st.lists(
        st.tuples(st.text("abc.", min_size=1, max_size=30), st.floats(0, 3), st.floats(0.01, 2)), max_size=60
    ),
    between=st.sampled_from([" ", ""]),
)
def test_no_word_is_lost_and_no_captions_overlap(words: list[tuple[str, float, float]], between: str) -> None:
    now, given = 0.0, []
    for word, pause, length in words:
        given.append({"word": word, "start_s": now + pause, "end_s": now + pause + length})
        now += pause + length
    found = captions(given, between)
    assert "".join("".join(each.text.split()) for each in found) == "".join(word for word, _, _ in words)
    assert all(one.end_s <= other.start_s for one, other in pairwise(found))
    assert all(each.start_s < each.end_s <= each.start_s + max(MOST_S, 2) + 1e-6 for each in found)


def test_files_of_both_formats() -> None:
    shown = captions([*said("1 < 2 & so on.", 0.5), *said("An hour later.", 3661.25)])
    assert "".join(as_srt(shown, 7)) == (
        "7\n00:00:00,500 --> 00:00:02,300\n1 < 2 & so on.\n\n8\n01:01:01,250 --> 01:01:02,150\nAn hour later.\n\n"
    )
    assert "".join(as_vtt(shown, 1)).startswith("1\n00:00:00.500 --> 00:00:02.300\n1 &lt; 2 &amp; so on.\n\n")


RATE_HZ = 1000


def tone(seconds: float, loud: float = 8000) -> Any:
    return (loud * np.sin(np.arange(round(seconds * RATE_HZ)) / 3)).astype("<i2")


def pieces_of(samples: Any, most_s: float = 10.0) -> list[Any]:
    found = list(live_pieces(io.BytesIO(samples.tobytes()), RATE_HZ, most_s))
    heard = []
    for piece in found:
        with wave.open(io.BytesIO(piece.sound)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE_HZ, 1, 2)
            heard.append(np.frombuffer(file.readframes(file.getnframes()), "<i2"))
            assert piece.length_s == len(heard[-1]) / RATE_HZ
    assert [piece.start_s for piece in found] == [sum(map(len, heard[:at])) / RATE_HZ for at in range(len(heard))]
    assert np.array_equal(np.concatenate([*heard, np.empty(0, "<i2")]), samples), "without gap or overlap"
    return found


def test_a_piece_ends_in_the_first_pause_that_comes_late_enough() -> None:
    samples = np.concatenate([tone(2), tone(0.5, 0), tone(3), tone(0.5, 0), tone(1)])
    first, second = pieces_of(samples)
    assert 5.5 < first.length_s < 6.0
    assert second.start_s == first.length_s


def test_where_nobody_pauses_a_piece_ends_where_it_is_quietest() -> None:
    samples = np.concatenate([tone(7), tone(0.2, 2000), tone(7)])
    first, *_ = pieces_of(samples)
    assert 6.9 < first.length_s < 7.3
    assert all(piece.length_s <= 10.2 for piece in pieces_of(tone(45)))


def test_silence_and_nothing_at_all() -> None:
    assert len(pieces_of(tone(9, 0))) == 3
    assert pieces_of(tone(0)) == []


@pytest.fixture
def ctc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    settle(monkeypatch)
    made = speech.MAKERS["wav2vec2/speech-recognition"](tmp_path)
    recipe = recipe_from_dict(
        {
            "name": "tiny",
            "task": "speech-recognition",
            "model": made["model"],
            "data": made["data"],
            "storage": str(tmp_path / "store"),
        }
    )
    task = build_task(recipe)
    return store_model(
        open_store(f"file://{tmp_path}/run"), task.build_model(from_scratch=False), recipe, task_facts=task.facts()
    )


def test_the_command_writes_what_predict_says(capsys: pytest.CaptureFixture[str], tmp_path: Path, ctc: str) -> None:
    sound, out = tmp_path / "clips/1.wav", tmp_path / "talk.srt"
    capsys.readouterr()
    assert run(capsys, "caption", ctc, sound, "--out", out) == (0, "", "")
    blocks = out.read_text().strip().split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == [str(number) for number in range(1, len(blocks) + 1)]
    from tlcore.train.offline import TrainedModel

    answer = TrainedModel(ctc).predict([str(sound)])[0]
    assert answer["words"], "an untrained model says something"
    assert " ".join(word for block in blocks for word in block.split("\n")[2:]) == answer["prediction"]
    code, _, err = run(capsys, "caption", ctc, sound, "--out", out)
    assert code == 2 and "exists" in err


def test_what_comes_by_stdin_has_times_from_its_beginning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ctc: str
) -> None:
    spoken = (speech.spell("ab ca bc " * 8) * 20_000).astype("<i2")
    seconds = len(spoken) / speech.RATE_HZ
    assert seconds > 3, "more than the two seconds that this model hears at once"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(spoken.tobytes())))
    capsys.readouterr()
    code, said, err = run(capsys, "caption", ctc, "-", "--format", "vtt", "--rate", speech.RATE_HZ)
    assert (code, err) == (0, "")
    assert said.startswith("WEBVTT\n\n1\n") and said.count("WEBVTT") == 1
    times = [60 * int(minutes) + float(rest) for minutes, rest in re.findall(r"00:(\d\d):(\d\d\.\d{3})", said)]
    assert times == sorted(times) and times[-2] > 2 and times[-1] <= seconds + LEAST_S


def test_a_model_of_another_task_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    code, _, err = run(capsys, "caption", store_untrained(tmp_path), tmp_path / "a.wav")
    assert "was trained for text-classification" in err and code == 2
