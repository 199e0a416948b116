"""Speech tasks on tiny models: vocabularies, losses, error rates against jiwer over uneven ranks, long sounds, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import torch

from tests.families import speech
from tlcore.errors import DataError, ModelError, RecipeError
from tlcore.recipe import Recipe, recipe_from_dict
from tlcore.tasks import build_task, build_without_data
from tlcore.tasks.base import IGNORED
from tlcore.tasks.contrast import hide
from tlcore.tasks.ctc_transcriber import ctc_losses
from tlcore.tasks.ctc_vocabulary import CtcVocabulary, find_vocabulary, make_tokenizer
from tlcore.tasks.error_rates import ErrorRates, Heard, edits
from tlcore.tasks.transcriber import decode_references, encode_references, sound_and_text

pytestmark = pytest.mark.unit

CTC, WHISPER, CLASSES, CONTRAST = (
    "wav2vec2/speech-recognition",
    "whisper/speech-recognition",
    "wav2vec2/audio-classification",
    "wav2vec2/audio-pretraining",
)


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Each row's sections of a recipe."""
    made = {}
    for name in (CTC, WHISPER, CLASSES, CONTRAST):
        home = tmp_path_factory.mktemp(name.replace("/", "-"))
        made[name] = {**speech.MAKERS[name](home), "home": home}
    return made


def recipe_of(homes: dict[str, dict[str, Any]], name: str, **data: Any) -> Recipe:
    sections = homes[name]
    return recipe_from_dict(
        {
            "name": "tiny",
            "task": name.partition("/")[2],
            "model": sections["model"],
            "data": {**sections["data"], **data},
            "train": {"global_batch_size": 8},
            "storage": str(sections["home"] / "store"),
        }
    )


def test_code_vectors_are_chosen_ever_more_surely_by_the_step_alone(homes: dict[str, dict[str, Any]]) -> None:
    task = build_task(recipe_of(homes, CONTRAST))
    model: Any = task.build_model(from_scratch=False)
    found = []
    for step in (0, 10_000, 1_000_000, 10_000):
        task.begin_step(torch.nn.DataParallel(model), step)  # something around the model, as an engine is
        found.append(model.quantizer.temperature)
    assert found == pytest.approx([2.0, 1.90246, 0.5, 1.90246], rel=1e-5)
    other = build_task(recipe_of(homes, CTC))
    other.begin_step(other.build_model(from_scratch=False), 5)  # of most tasks nothing follows a schedule


@pytest.mark.parametrize("name", [CTC, WHISPER, CLASSES, CONTRAST])
def test_a_filler_costs_nothing_and_reaches_every_parameter(homes: dict[str, dict[str, Any]], name: str) -> None:
    task = build_task(recipe_of(homes, name))
    task.check_data()
    model = task.build_model(from_scratch=False)
    loss = task.loss(model, task.collate("train", []))
    loss.backward()
    assert loss.item() == 0.0
    assert all(each.grad is None or not each.grad.any() for each in model.parameters())
    counts = task.metrics()
    counts.update(model.eval(), task.collate("train", []))
    with pytest.raises(DataError, match="was evaluated"):
        counts.compute()


@pytest.mark.parametrize("name", [CTC, WHISPER])
def test_the_loss_is_the_mean_over_labels_whatever_the_padding(homes: dict[str, dict[str, Any]], name: str) -> None:
    task = build_task(recipe_of(homes, name))
    model = task.build_model(from_scratch=False).eval()
    together = task.loss(model, task.collate("train", range(5)))
    weights = task.weights("train")[:5]
    apart = [task.loss(model, task.collate("train", [index])).item() for index in range(5)]
    assert together.item() == pytest.approx(np.average(apart, weights=weights), rel=1e-4)


@pytest.mark.parametrize("name", [CTC, WHISPER, CLASSES, CONTRAST])
def test_an_estimate_needs_no_data_and_no_memory(homes: dict[str, dict[str, Any]], name: str) -> None:
    from tlcore.engine.activations import nothing_allocated

    recipe = recipe_of(homes, name, train="/not/there.jsonl")
    with nothing_allocated():
        task = build_without_data(recipe)
        model = task.build_model(from_scratch=True)
        task.loss(model, task.largest_batch(3)).backward()
    # What stands for a hidden step is one row, which nothing hides here.
    without = [name for name, each in model.named_parameters() if each.grad is None and each.requires_grad]
    assert all(name.endswith("masked_spec_embed") for name in without)


def test_the_ctc_loss_is_torchs_and_ignores_padding() -> None:
    logits, labels = torch.randn(2, 9, 4), torch.tensor([[1, 2, 3], [2, 2, IGNORED]])
    losses = ctc_losses(logits, labels, torch.tensor([9, 6]), 0)
    for row, (steps, count) in enumerate([(9, 3), (6, 2)]):
        told = logits[row, :steps].log_softmax(dim=-1)
        wanted = torch.nn.functional.ctc_loss(told, labels[row, :count], [steps], [count], reduction="sum")
        assert losses[row].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert ctc_losses(logits[:1], labels[1:], torch.tensor([2]), 0).item() == 0.0  # 3 steps are needed


def test_a_vocabulary_is_that_of_the_texts_and_survives_facts(homes: dict[str, dict[str, Any]]) -> None:
    task = build_task(recipe_of(homes, CTC))
    facts = {"vocabulary": ["<pad>", "<unk>", "|", "a", "b", "c"]}
    assert task.facts() == facts
    again = build_task(recipe_of(homes, CTC, train="/not/there.jsonl"), facts)
    assert again.build_model(from_scratch=True).config.vocab_size == 6


def test_texts_become_signs_in_the_case_that_the_vocabulary_has() -> None:
    vocabulary = CtcVocabulary(make_tokenizer(find_vocabulary(["ab c'", "b a"])))
    assert vocabulary.tokenizer.get_vocab() == {"<pad>": 0, "<unk>": 1, "|": 2, "'": 3, "a": 4, "b": 5, "c": 6}
    assert vocabulary.plain("  A,  b!\nC' ") == "a b c'"
    assert vocabulary.encode("A b?") == [4, 2, 5]
    assert vocabulary.encode("az") == [4, 1]
    upper = CtcVocabulary(make_tokenizer(find_vocabulary(["AB C"])))
    assert upper.plain("a b") == "A B"
    mixed = CtcVocabulary(make_tokenizer(find_vocabulary(["Ab."])))
    assert mixed.plain("Ab. a") == "Ab. a"


def test_steps_become_words_with_their_times() -> None:
    vocabulary = CtcVocabulary(make_tokenizer(find_vocabulary(["ab"])))
    a, b, space = 3, 4, 2
    words = vocabulary.words(np.array([0, a, a, 0, a, b, space, space, 0, b, 0]))
    assert [(word.text, word.start, word.end) for word in words] == [("aab", 1, 6), ("b", 9, 10)]
    assert vocabulary.words(np.array([0, space, 0])) == []
    assert vocabulary.words(np.array([0, 0])) == []


def test_error_rates_over_uneven_ranks_are_jiwers() -> None:
    said = ["a b c", "the cat sat", "x", "one two three four", "same"]
    understood = ["a c", "the bad cat sat", "", "one too three", "same"]
    shares = [slice(0, 1), slice(1, 1), slice(1, 5)]
    ranks = [ErrorRates(lambda model, batch: batch["heard"]) for _ in shares]
    for rank, share in zip(ranks, shares, strict=True):
        heard = Heard(torch.tensor(2.0), torch.tensor(4), said[share], understood[share])
        rank.update(torch.nn.Identity(), {"heard": heard})  # type: ignore[dict-item]
    sent: list[torch.Tensor] = []
    for rank in ranks:
        rank.merge(lambda sums: sent.append(sums.clone()) or sums)
    total = torch.stack(sent).sum(dim=0)
    for rank in ranks:
        rank.merge(lambda sums: total)
        found = rank.compute()
        assert found["wer"] == pytest.approx(jiwer.wer(said, understood))
        assert found["cer"] == pytest.approx(jiwer.cer(said, understood))
        assert found["loss"] == 0.5
    assert edits(["", "a"], ["b", "a"]) == [1, 1, 1, 1]


def test_references_travel_as_bytes() -> None:
    texts = ["aé", "", "longer text"]
    assert decode_references(encode_references(texts)) == texts
    assert decode_references(encode_references([""])) == [""]


def test_whisper_learns_the_text_and_its_end_alone(homes: dict[str, dict[str, Any]]) -> None:
    task = build_task(recipe_of(homes, WHISPER))
    task.load_data()
    batch = task.collate("train", [0])
    start, notimestamps, end = 5, 9, 4
    letters = {"a": 0, "b": 1, "c": 2, " ": 3}
    text = [letters[letter] for letter in f" {decode_references(batch['references'])[0]}"]
    assert batch["decoder_input_ids"].tolist() == [[start, notimestamps, *text]]
    assert batch["labels"].tolist() == [[IGNORED, *text, end]]


def test_a_long_sound_is_heard_in_windows(homes: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    sound = speech.spell("ab ca bc ba " * 8)
    soundfile.write(tmp_path / "long.wav", sound, speech.RATE_HZ)
    seconds = len(sound) / speech.RATE_HZ
    assert seconds > 4
    for name in (CTC, WHISPER, CLASSES):
        task = build_task(recipe_of(homes, name))
        task.load_data()
        model = task.build_model(from_scratch=False).eval()
        answer = task.predict(model, [str(tmp_path / "long.wav")])[0]
        assert answer
    task = build_task(recipe_of(homes, CTC))
    model = task.build_model(from_scratch=False).eval()
    whole = build_task(recipe_of(homes, CTC, max_seconds=10.0))
    path = str(tmp_path / "long.wav")
    there = task._way._listen(model, task_sound(path))  # type: ignore[attr-defined]
    at_once = whole._way._listen(model, task_sound(path))  # type: ignore[attr-defined]
    assert abs(len(there) - len(at_once)) <= 3
    timed = task.predict(model, [{"audio": path, "text": "ab ca"}])[0]["pronunciation"]["words"]
    assert [word["word"] for word in timed] == ["ab", "ca"]
    assert 0 <= timed[0]["start_s"] < timed[0]["end_s"] <= timed[1]["start_s"] < timed[1]["end_s"] <= seconds + 0.1
    assert all(0 < word["score"] <= 1 for word in timed)


def task_sound(path: str) -> Any:
    from tlcore.tasks.sounds import open_sound

    return open_sound(path, speech.RATE_HZ)


def test_a_sound_may_have_any_number_of_classes(homes: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(homes[CLASSES]["data"]["train"]).read_text().splitlines()]
    home = Path(homes[CLASSES]["data"]["train"]).parent
    cells: list[list[str]] = [["low", "long"], [], ["long"], ["low"]]
    for number, row in enumerate(rows):
        row["audio"], row["label"] = str(home / row["audio"]), cells[number % 4]
    speech.write_rows(tmp_path / "many.jsonl", rows)
    task = build_task(recipe_of(homes, CLASSES, train=str(tmp_path / "many.jsonl"), multi_label=True))
    task.check_data()
    sizes = task.load_data()
    assert task.facts() == {"labels": ["long", "low"]}
    split = [task.collate(name, range(size))["labels"] for name, size in sizes.items()]
    assert torch.cat(split).sum(dim=0).tolist() == [
        sum(name in cells[n % 4] for n in range(len(rows))) for name in ("long", "low")
    ]
    model = task.build_model(from_scratch=False).eval()
    assert model.config.problem_type == "multi_label_classification"
    (answer,) = task.predict(model, [rows[0]["audio"]])
    assert answer["labels"] == [label for label, score in answer["scores"].items() if score >= 0.5]
    assert task.loss(model, task.collate("train", [])).item() == 0


def test_what_predict_is_given() -> None:
    assert sound_and_text("a.wav", 0) == ("a.wav", None)
    assert sound_and_text('{"audio": "a.wav", "text": "hello"}', 0) == ("a.wav", "hello")
    assert sound_and_text({"bytes": b"x", "path": None}, 0) == ({"bytes": b"x", "path": None}, None)
    for wrong in ('{"audio": ', {"audio": "a.wav", "text": 3}, {"audio": "a.wav", "txt": "x"}):
        with pytest.raises(DataError, match="input 4 is"):
            sound_and_text(wrong, 4)


def test_settings_that_a_model_has_no_use_for_are_refused(homes: dict[str, dict[str, Any]]) -> None:
    for setting, message in (({"beams": 2}, "decoded greedily"), ({"language": "en"}, "is asked for none")):
        with pytest.raises(RecipeError, match=message):
            build_task(recipe_of(homes, CTC, **setting)).load_data()
    with pytest.raises(RecipeError, match=r"only text-classification, .* take it"):
        build_task(recipe_of(homes, CTC, multi_label=True))
    refused = (
        ({"language": "en"}, "knows one language"),
        ({"max_seconds": 2.0}, "hears 1 s at most; set it to 1 or less"),
        ({"max_target_length": 23}, "writes 22 tokens at most"),
    )
    for setting, message in refused:
        with pytest.raises(RecipeError, match=message):
            task = build_task(recipe_of(homes, WHISPER, **setting))
            task.load_data()
            task.build_model(from_scratch=False)
    recipe = recipe_of(homes, CTC)
    translating = recipe.model_copy(update={"task": "speech-translation"})
    with pytest.raises(ModelError, match="is a wav2vec2, which task speech-translation has no use for"):
        build_task(translating).build_model(from_scratch=False)


def test_whisper_has_no_pronunciation_scores(homes: dict[str, dict[str, Any]]) -> None:
    task = build_task(recipe_of(homes, WHISPER))
    given = {"audio": homes[WHISPER]["predict"][0], "text": "ab"}
    with pytest.raises(DataError, match="is found by a CTC model"):
        task.predict(task.build_model(from_scratch=False).eval(), [given])


def test_bad_data_is_said(homes: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    speech.write_sounds(tmp_path, ["a", "b"])
    rows = [{"audio": "clips/0.wav", "text": "ab"}, {"audio": "clips/9.wav", "text": "b"}]
    place = speech.write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"row 2: column 'audio' names .*clips/9.wav, which is no file"):
        build_task(recipe_of(homes, CTC, train=place)).check_data()
    place = speech.write_rows(tmp_path / "signs.jsonl", [{"audio": "clips/0.wav", "text": "?!"}] * 4)
    known = {"vocabulary": ["<pad>", "<unk>", "|", "a"]}
    with pytest.raises(DataError, match=r"nothing of any of the 4 texts is in the vocabulary, such as '\?!'"):
        build_task(recipe_of(homes, CTC, train=place), known).load_data()
    place = speech.write_rows(tmp_path / "long.jsonl", [{"audio": "clips/0.wav", "text": "ab" * 40}] * 4)
    with pytest.raises(DataError, match="each of the 4 texts has more signs than its sound has steps"):
        build_task(recipe_of(homes, CTC, train=place)).load_data()


def test_layer_drop_is_off_since_ranks_would_draw_apart(homes: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    from transformers import Wav2Vec2Config

    speech.save_waveform_extractor(tmp_path)
    speech.save(tmp_path, Wav2Vec2Config(**{**speech.WAVEFORM, "layerdrop": 0.5}), "Wav2Vec2Model")
    recipe = recipe_of(homes, CTC)
    moved = recipe.model_copy(update={"model": recipe.model.model_copy(update={"source": str(tmp_path)})})
    assert build_task(moved).build_model(from_scratch=False).config.layerdrop == 0.0


def test_what_is_hidden_and_what_it_is_confused_with() -> None:
    steps = [40, 12, 3, 1]
    torch.manual_seed(3)
    hidden = hide(steps, 40, 0.4, 5, 7)
    counts = hidden.mask.sum(dim=1).tolist()
    assert all(1 <= count <= length for count, length in zip(counts, steps, strict=True))
    assert not any(hidden.mask[row, length:].any() for row, length in enumerate(steps))
    starts = np.cumsum([0, *counts])
    for row, count in enumerate(counts):
        drawn = hidden.distractors[starts[row] : starts[row + 1]]
        if count == 1:
            assert (drawn == IGNORED).all()
        else:
            assert drawn.min() >= starts[row]
            assert drawn.max() < starts[row + 1]
            assert (drawn != torch.arange(starts[row], starts[row + 1]).unsqueeze(1)).all()
    torch.manual_seed(3)
    assert torch.equal(hide(steps, 40, 0.4, 5, 7).mask, hidden.mask)
    fixed = [hide(steps[:1], 40, 0.4, 5, 7, [torch.Generator().manual_seed(1)]) for _ in range(2)]
    assert torch.equal(fixed[0].distractors, fixed[1].distractors)


def test_the_contrastive_loss_is_transformers_own(homes: dict[str, dict[str, Any]]) -> None:
    from tlcore.tasks.contrast import contrast, contrastive_losses

    task = build_task(recipe_of(homes, CONTRAST))
    model = task.build_model(from_scratch=False).eval()
    batch = task.collate("train", range(3))
    width = int(model._get_feat_extract_output_lengths(batch["input_values"].shape[1]))
    steps = model._get_feat_extract_output_lengths(batch["input_lengths"]).tolist()
    hidden = hide(steps, width, 0.4, 2, 10)
    negatives = torch.zeros(3, width, 10, dtype=torch.int64)
    places = torch.arange(3 * width).reshape(3, width)[hidden.mask]
    negatives[hidden.mask] = places[hidden.distractors]
    inputs = {"input_values": batch["input_values"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        theirs = model(**inputs, mask_time_indices=hidden.mask, sampled_negative_indices=negatives)
    logits = contrast(
        theirs.projected_states, theirs.projected_quantized_states, hidden, model.config.contrastive_logits_temperature
    )
    assert contrastive_losses(logits).sum().item() == pytest.approx(theirs.contrastive_loss.item(), rel=1e-4)
