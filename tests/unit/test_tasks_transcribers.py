"""What transcribers make of texts and sounds as people have them: Whisper's words as written, in every name of a language; sounds
too short for a model; texts beyond a vocabulary; trials that differ in what they hear."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import pre_tokenizers
from transformers import GenerationConfig, Wav2Vec2Config, WhisperTokenizer

from tests.families import speech
from tests.families.text import save, write_rows
from tlcore.recipe import Recipe, recipe_from_dict
from tlcore.tasks import build_task, build_without_data
from tlcore.tasks.ctc_vocabulary import CtcVocabulary, find_vocabulary, make_tokenizer
from tlcore.tasks.sounds import open_sound
from tlcore.tasks.speech_recognition import SpeechRecognition
from tlcore.tasks.whisper_transcriber import WhisperTranscriber

pytestmark = pytest.mark.unit

SPECIAL = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|translate|>", "<|transcribe|>"),
    "<|notimestamps|>",
)
WINDOW_S = 1.0
KNOWN = {"vocabulary": ["<pad>", "<unk>", "|", "a", "b", "c"]}


def recipe_of(task: str, source: str, **data: Any) -> Recipe:
    """Training data may also be a list of rows beside the model, which then are the validation data too."""
    if isinstance(data["train"], list):
        rows = data["train"]
        data |= {split: write_rows(Path(source) / f"{split}.jsonl", rows) for split in ("train", "validation")}
    return recipe_from_dict(
        {
            "name": "tiny",
            "task": task,
            "model": {"source": source},
            "data": data,
            "train": {"global_batch_size": 8},
            "storage": source,
        }
    )


def task_of(task: str, source: str, **data: Any) -> Any:
    return build_task(recipe_of(task, source, **data))


@pytest.fixture(scope="module")
def whisper_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of several languages whose alignment heads are known, with a token for each byte."""
    home = tmp_path_factory.mktemp("whisper")
    speech.MAKERS["whisper/speech-recognition"](home)
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = WhisperTokenizer(vocab={sign: number for number, sign in enumerate((*signs, *SPECIAL))}, merges=[])
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIAL[1:])})
    tokenizer.save_pretrained(home)
    GenerationConfig(
        is_multilingual=True,
        alignment_heads=[[1, 0]],
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
    ).save_pretrained(home)
    return home


def whisper_task(home: Path, language: str, task: str = "speech-recognition") -> Any:
    return task_of(task, str(home), train="none.jsonl", max_seconds=WINDOW_S, max_target_length=12, language=language)


def answer_to(
    task: SpeechRecognition, monkeypatch: pytest.MonkeyPatch, *spoken: tuple[str, float, float]
) -> dict[str, Any]:
    """What becomes of tokens that a model gave: of each window its text, evenly told from one time of the window to another (s)."""
    way = task._way
    assert isinstance(way, WhisperTranscriber)
    given = iter(spoken)

    def generated(*_: Any, **__: Any) -> dict[str, torch.Tensor]:
        text, first_s, last_s = next(given)
        ids = way.tokenizer(text, add_special_tokens=False)["input_ids"]
        return {"sequences": torch.tensor([ids]), "token_timestamps": torch.linspace(first_s, last_s, len(ids))[None]}

    monkeypatch.setattr(way, "_generate", generated)
    frames = round((WINDOW_S if len(spoken) == 1 else 1.6 * WINDOW_S) * speech.RATE_HZ)
    answer = way.answer(torch.nn.Linear(1, 1), np.zeros(frames, np.int16), None)
    assert next(given, None) is None
    return answer


def test_a_text_is_as_it_was_written_and_its_words_are_bare(
    whisper_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'A well-known 3.5% of U.S. "trade", and/or so.'
    answer = answer_to(whisper_task(whisper_home, "en"), monkeypatch, (f" {text}", 0.1, 0.9))
    assert answer["prediction"] == text
    words = [word["word"] for word in answer["words"]]
    assert words[:4] == ["A", "well", "-known", "3"]
    assert all(word == word.strip() and word for word in words)


def test_word_times_change_no_text_that_a_model_gives(tmp_path: Path) -> None:
    speech.MAKERS["whisper/speech-recognition"](tmp_path)
    settings = {"no_timestamps_token_id": 9, "decoder_start_token_id": 5, "eos_token_id": 4, "pad_token_id": 4}
    GenerationConfig(alignment_heads=[[1, 0], [1, 1]], **settings).save_pretrained(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    data = {"max_seconds": WINDOW_S, "max_target_length": 12}
    task = task_of("speech-recognition", str(tmp_path), train=rows, **data)
    model = task.build_model(from_scratch=False).eval()
    for row in rows[:3]:
        sound = open_sound(str(tmp_path / row["audio"]), speech.RATE_HZ)
        (written,) = task._way._produce(model, task._way._inputs.batch([sound]), together=False)
        answer = task._way.answer(model, sound, None)
        assert answer["prediction"] == written
        assert [word["word"] for word in answer["words"]] == written.split()
        assert all(0 <= word["start_s"] <= word["end_s"] <= WINDOW_S for word in answer["words"])


@pytest.mark.parametrize("language", ["zh", "chinese", "Mandarin"])
def test_a_language_without_blanks_gets_none(
    whisper_home: Path, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    task = whisper_task(whisper_home, language)
    answer = answer_to(task, monkeypatch, ("今天很好。", 0.1, 0.9))
    assert answer["prediction"] == "今天很好。"
    assert [word["word"] for word in answer["words"]] == ["今", "天", "很", "好。"]
    assert answer_to(task, monkeypatch, ("今天", 0.0, 0.8), ("很好", 0.2, 0.6))["prediction"] == "今天很好"


@pytest.mark.parametrize("second", [" two three", "three"])
def test_windows_go_on_with_a_blank_whoever_wrote_it(
    whisper_home: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    task = whisper_task(whisper_home, "English")
    spoken = (" one two", 0.0, 0.8), (second, -0.3 if "two" in second else 0.2, 0.6)
    answer = answer_to(task, monkeypatch, *spoken)
    assert answer["prediction"] == "one two three"
    assert [word["word"] for word in answer["words"]] == ["one", "two", "three"]


def test_a_translation_from_a_language_without_blanks_has_them(
    whisper_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = whisper_task(whisper_home, "zh", "speech-translation")
    assert answer_to(task, monkeypatch, (" it is", 0.0, 0.8), ("fine", 0.2, 0.6))["prediction"] == "it is fine"


@pytest.mark.parametrize("language", ["en", "english", "English", "EN"])
def test_texts_are_compared_alike_whatever_a_language_is_called(whisper_home: Path, language: str) -> None:
    normal = whisper_task(whisper_home, language)._way._normal
    assert normal("Um, it's twenty-five dollars!") == normal("it is $25")


def test_no_text_is_the_end_alone(whisper_home: Path) -> None:
    rows = [{"audio": "clips/0.wav", "text": text} for text in ("", "x", "  ")]
    data = {"train": rows, "max_seconds": WINDOW_S, "max_target_length": 12, "language": "en"}
    task = task_of("speech-recognition", str(whisper_home), **data)
    task.load_data()
    assert task.weights("train").tolist() == [1, 3, 1]


def save_waveform_model(home: Path, kind: str, **settings: Any) -> str:
    speech.save_waveform_extractor(home)
    return save(home, Wav2Vec2Config(**{**speech.WAVEFORM, **settings}), kind)


def write_short(home: Path) -> list[dict[str, str]]:
    """Sounds of 5 ms and 20 ms, where one step takes 8.5 ms, and one without a frame."""
    speech.write_sounds(home, ["ab"])
    seconds = (0.005, 0.02, 0.0, 0.02)
    for number, each in enumerate(seconds):
        tone = np.sin(np.arange(round(each * speech.RATE_HZ)))
        soundfile.write(home / "clips" / f"{number}.wav", tone, speech.RATE_HZ)
    rows = [{"audio": f"clips/{number}.wav", "text": "a", "label": str(number % 2)} for number in range(len(seconds))]
    return [*rows, {"audio": "clips/3.wav", "text": "b", "label": "1"}]


@pytest.mark.parametrize("task", ["speech-recognition", "audio-classification", "audio-pretraining"])
def test_sounds_shorter_than_a_hidden_span_are_learned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, task: str
) -> None:
    kind = "Wav2Vec2ForPreTraining" if task == "audio-pretraining" else "Wav2Vec2Model"
    codes = {"num_codevectors_per_group": 8, "codevector_dim": 8, "proj_codevector_dim": 8, "num_negatives": 10}
    source = save_waveform_model(tmp_path, kind, mask_time_prob=0.5, mask_time_length=10, **codes)
    rows = write_short(tmp_path)
    with caplog.at_level(logging.WARNING):
        made = task_of(task, source, train=rows, max_seconds=1.0)
        assert made.load_data()["train"] == 4
    assert "left out 1 of 5 sounds, which have no frame" in caplog.text
    model = made.build_model(from_scratch=False)
    loss = made.loss(model, made.collate("train", [0]))
    loss.backward()
    assert torch.isfinite(loss)
    made.loss(model, made.collate("train", range(4))).backward()
    assert all(each.grad is None or torch.isfinite(each.grad).all() for each in model.parameters())
    counts = made.metrics()
    counts.update(model.eval(), made.collate("validation", range(4)))
    assert np.isfinite(counts.compute()["loss"])
    assert made.predict(model, [str(tmp_path / "clips/0.wav")])


def test_what_fills_up_a_short_sound_is_not_heard(tmp_path: Path) -> None:
    source = save_waveform_model(tmp_path, "Wav2Vec2Model", mask_time_prob=0.5, mask_time_length=10)
    task = task_of("speech-recognition", source, train=write_short(tmp_path), max_seconds=1.0)
    model = task.build_model(from_scratch=False).eval()
    sound = np.arange(80, dtype=np.int16)
    batch = task._way.batch([sound], [[3]])
    assert batch["input_values"].shape == (1, 322)  # ten steps of 8 * 4 samples, and what the kernels reach over
    assert batch["input_lengths"].tolist() == [80]
    alone = task._inputs.extractor(sound / np.float32(32768), sampling_rate=speech.RATE_HZ, return_tensors="pt")
    with torch.no_grad():
        wanted = model(**alone).logits[0].log_softmax(dim=-1)
    np.testing.assert_allclose(task._way._listen(model, sound), wanted, atol=1e-5)


def test_an_estimate_of_short_sounds_has_room_for_a_span(tmp_path: Path) -> None:
    source = save_waveform_model(tmp_path, "Wav2Vec2Model", mask_time_prob=0.5, mask_time_length=10)
    recipe = recipe_of("speech-recognition", source, train="none.jsonl", max_seconds=0.03)
    assert build_without_data(recipe).largest_batch(2)["input_values"].shape == (2, 322)


def test_a_trial_that_hears_longer_sounds_learns_them(tmp_path: Path) -> None:
    source = save_waveform_model(tmp_path, "Wav2Vec2Model")
    place = speech.write_spoken(tmp_path)
    sizes = []
    for seconds in (0.3, 2.0, 0.3):
        recipe = recipe_of("speech-recognition", source, train=place, validation=0.25, max_seconds=seconds)
        sizes.append(sum(build_task(recipe, KNOWN).load_data().values()))
    assert sizes[0] < sizes[1] == speech.SAMPLES
    assert sizes[2] == sizes[0]


def test_apostrophes_and_dashes_come_to_what_a_vocabulary_has() -> None:
    vocabulary = CtcVocabulary(make_tokenizer(find_vocabulary(["abcdefghijklmnopqrstuvwxyz'"])))
    assert vocabulary.plain("Don’t say ‘no’ to a well-known end—or, so… what?") == (
        "don't say no to a well known end or so what"
    )
    without = CtcVocabulary(make_tokenizer(find_vocabulary(["abcdefghijklmnopqrstuvwxyz"])))
    assert without.plain("don’t don't and/or 3%") == "dont dont and or 3"
    curly = CtcVocabulary(make_tokenizer(find_vocabulary(["don’t 'a' e-x"])))
    assert curly.plain("don’t e-x") == "don’t e-x"


@pytest.mark.parametrize("written", ["caf\u00e9", "cafe\u0301"])
def test_accents_are_what_a_vocabulary_has(written: str) -> None:
    composed, marks = (CtcVocabulary(make_tokenizer(find_vocabulary([text]))) for text in ("caf\u00e9", "cafe\u0301"))
    assert composed.unknown not in composed.encode(written)
    assert marks.plain(written) == written


def test_texts_beyond_the_vocabulary_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = save_waveform_model(tmp_path, "Wav2Vec2Model")
    texts = ["ab", "?!", "", "a3", "ca"]
    names = speech.write_sounds(tmp_path, ["ab", "ab", "ab", "ab", "ca"])
    rows = [{"audio": name, "text": text} for name, text in zip(names, texts, strict=True)]
    task = build_task(recipe_of("speech-recognition", source, train=rows, max_seconds=1.0), KNOWN)
    with caplog.at_level(logging.WARNING):
        task.load_data()
    assert "nothing of 2 of 5 texts is in the vocabulary, such as '?!': not learned, and in no metric" in caplog.text
    assert "1 of 5 texts have letters or digits that the vocabulary lacks, such as 'a3'" in caplog.text
    weights = task.weights("train")
    assert weights is not None
    assert weights.tolist() == [2, 0, 0, 2, 2]
    model = task.build_model(from_scratch=False)
    assert task.loss(model, task.collate("train", [1, 2])).item() == 0.0
    together, apart = task.loss(model, task.collate("train", [0, 1])), task.loss(model, task.collate("train", [0]))
    assert together.item() == pytest.approx(apart.item(), rel=1e-4)
    counts = task.metrics()
    counts.update(model.eval(), task.collate("validation", range(5)))
    assert json.dumps(counts.compute())
