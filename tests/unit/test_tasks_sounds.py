"""Sounds as samples: decoded the same from everywhere, resampled without folding, left out when too long, windows without gaps."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
from tiny_text_model import write_rows

from tlcore.errors import DataError
from tlcore.tasks import sounds
from tlcore.tasks.long_sounds import join_texts, windows
from tlcore.tasks.recent import Recent
from tlcore.tasks.sounds import decode, open_sound, read_sounds, resample

pytestmark = pytest.mark.unit

RATE_HZ = 8000


def tone(hertz: float, seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def file_of(sound: np.ndarray, rate_hz: int = RATE_HZ, form: str = "WAV", subtype: str | None = None) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, sound, rate_hz, format=form, subtype=subtype)
    return sink.getvalue()


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "_read", Recent(4))


def test_sixteen_bits_come_back_as_they_were() -> None:
    samples = np.array([0, 1, -1, 32767, -32768], dtype=np.int16)
    assert decode(file_of(samples), RATE_HZ, "a").tolist() == samples.tolist()
    stereo = np.stack([samples, np.zeros_like(samples)], axis=1)
    assert decode(file_of(stereo), RATE_HZ, "a").tolist() == [0, 0, 0, 16384, -16384]


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_every_known_format_is_read(form: str) -> None:
    sound = decode(file_of(tone(440, 0.5), form=form), RATE_HZ, "a")
    spectrum = np.abs(np.fft.rfft(sound.astype(float)))
    assert abs(spectrum.argmax() * RATE_HZ / len(sound) - 440) < 5


@pytest.mark.parametrize("given_hz", [8000, 11025, 44100, 48000])
def test_resampling_keeps_what_the_new_rate_can_hold_and_nothing_above(given_hz: int) -> None:
    kept = resample(tone(1000, 1.0, given_hz), given_hz, 16000)
    assert len(kept) == 16000
    middle = slice(2000, -2000)
    np.testing.assert_allclose(kept[middle], tone(1000, 1.0, 16000)[middle], atol=5e-3)
    if given_hz > 16000:
        assert np.abs(resample(tone(11000, 1.0, given_hz), given_hz, 16000)[middle]).max() < 5e-3


def test_what_is_no_sound_is_said() -> None:
    with pytest.raises(DataError, match=r"cannot read a.wav as sound: Format not recogni[sz]ed"):
        decode(b"no sound at all", RATE_HZ, "a.wav")
    with pytest.raises(DataError, match=r"a.wav holds no sound"):
        decode(file_of(np.zeros(0, np.float32)), RATE_HZ, "a.wav")
    with pytest.raises(DataError, match=r"a.wav holds samples that are no numbers"):
        decode(file_of(np.array([0.0, np.nan], np.float32), subtype="FLOAT"), RATE_HZ, "a.wav")
    with pytest.raises(DataError, match=r"cannot read /not/there\.wav: No such file"):
        open_sound("/not/there.wav", RATE_HZ)


def lay(home: Path) -> list[np.ndarray]:
    given = [tone(300 + 100 * number, 0.1 * (number + 1)) for number in range(4)]
    for number, sound in enumerate(given):
        (home / f"{number}.wav").write_bytes(file_of(sound))
    write_rows(home / "rows.jsonl", [{"audio": f"{number}.wav", "text": f"t{number}"} for number in range(4)])
    table = pa.table({"audio": [file_of(sound) for sound in given], "text": [f"t{number}" for number in range(4)]})
    pa.parquet.write_table(table, home / "rows.parquet")
    return given


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize("kept_bytes", [1 << 20, 0])
def test_samples_are_the_same_kept_or_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kept_bytes: int
) -> None:
    given = lay(tmp_path)
    monkeypatch.setattr(sounds, "KEPT_BYTES", kept_bytes)
    read = read_sounds(str(tmp_path / name), "audio", RATE_HZ, 1.0, "train", texts=["text"])
    assert read.frames.tolist() == [800, 1600, 2400, 3200]
    assert len(read._held) == (4 if kept_bytes else 0)
    for sound, wanted in zip(read.pcm([2, 0]), (given[2], given[0]), strict=True):
        np.testing.assert_allclose(sound / 32768, wanted, atol=1e-4)
    assert read.cells("text") == ["t0", "t1", "t2", "t3"]


def test_long_ones_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lay(tmp_path)
    place = str(tmp_path / "rows.jsonl")
    with caplog.at_level(logging.WARNING):
        read = read_sounds(place, "audio", RATE_HZ, 0.25, "train", texts=["text"])
    assert (len(read), read.cells("text")) == (2, ["t0", "t1"])
    assert (
        "left out 2 of 4 sounds, which are longer than data.max_seconds=0.25: not learned, and in no metric"
        in caplog.text
    )
    with pytest.raises(
        DataError, match=r"none of 4 sounds is left: 4 are longer than data.max_seconds=0.05, 0 have no frame"
    ):
        read_sounds(place, "audio", RATE_HZ, 0.05, "train", texts=["text"])


@pytest.mark.parametrize("kept_bytes", [1 << 20, 0])
@pytest.mark.parametrize("rate_hz", [RATE_HZ, 16000])
def test_empty_ones_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kept_bytes: int, rate_hz: int
) -> None:
    monkeypatch.setattr(sounds, "KEPT_BYTES", kept_bytes)
    lay(tmp_path)
    (tmp_path / "1.wav").write_bytes(file_of(np.zeros(0, np.float32)))
    with caplog.at_level(logging.WARNING):
        read = read_sounds(str(tmp_path / "rows.jsonl"), "audio", rate_hz, 1.0, "train", texts=["text"])
    assert read.cells("text") == ["t0", "t2", "t3"]
    assert [len(sound) for sound in read.pcm(range(3))] == read.frames.tolist()
    assert "left out 1 of 4 sounds, which have no frame" in caplog.text


@pytest.mark.parametrize("samples", [1, 99, 100, 101, 150, 184, 185, 1000, 1234])
def test_windows_are_believed_everywhere_once(samples: int) -> None:
    made = windows(samples, 100)
    assert [window.kept_start for window in made[1:]] == [window.kept_end for window in made[:-1]]
    assert (made[0].kept_start, made[-1].kept_end, made[-1].end) == (0, samples, samples)
    assert all(0 < window.end - window.start <= 100 for window in made)
    steps = [window.steps_kept(window.end - window.start) for window in made]
    assert sum(each.stop - each.start for each in steps) == samples


def test_texts_of_windows_join_where_they_overlap() -> None:
    assert join_texts(["one two three four five", "Four, five six seven"]) == "one two three Four, five six seven"
    assert join_texts(["one two", "three four"]) == "one two three four"
    assert join_texts(["", "one"]) == "one"
    assert join_texts(["今天天气很好", "很好我们走 "], between="") == "今天天气很好我们走"
    assert join_texts(["今天", "明天下雨"], between="") == "今天明天下雨"
    assert join_texts(["the end is the", "the start of the end"]) == "the end is the the start of the end"
