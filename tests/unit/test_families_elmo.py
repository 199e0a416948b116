"""ELMo: the published sizes, files in the published layout read back and computed in numpy, its characters, its heads.

No package carries the published weights: the files are written here in their layout, small and random.
"""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from family_checks import (
    check_checkpointing_changes_nothing,
    check_is_a_source,
    check_learns,
    check_scratch_follows_the_seed,
    check_structure,
    parameters_on_meta,
)
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from tlcore.errors import ModelError
from tlcore.models import build_pretrained, new_parameters, resolve_source
from tlcore.models.families.convert import convert
from tlcore.models.families.elmo import ElmoConfig, ScalarMixture
from tlcore.models.families.elmo_tokens import ElmoTokenizer, word_characters

pytestmark = pytest.mark.unit

TEXTS = ["a good film", "so bad!", "Überraschend"]
FILTERS = [[1, 3], [2, 4], [3, 5]]
CELLS, UNITS, SIZE, WIDE = 7, 6, 4, 12
OPTIONS = {
    "lstm": {
        "use_skip_connections": True,
        "projection_dim": UNITS,
        "cell_clip": 0.4,
        "proj_clip": 0.3,
        "dim": CELLS,
        "n_layers": 2,
    },
    "char_cnn": {
        "activation": "relu",
        "filters": FILTERS,
        "n_highway": 2,
        "embedding": {"dim": SIZE},
        "n_characters": 262,
        "max_characters_per_token": WIDE,
    },
}


def tiny(**changes: Any) -> ElmoConfig:
    sizes = {"filters": FILTERS, "character_size": SIZE, "projection_size": UNITS, "lstm_size": CELLS, "dropout": 0.0}
    return ElmoConfig(**sizes | {"max_characters_per_token": WIDE, "num_labels": 3} | changes)


def write_published(directory: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A weights file and its options in the published layout, and its arrays by key."""
    random = np.random.default_rng(5)
    many = sum(row[1] for row in FILTERS)
    shapes: dict[str, tuple[int, ...]] = {
        "char_embed": (261, SIZE),
        "CNN_proj/W_proj": (many, UNITS),
        "CNN_proj/b_proj": (UNITS,),
    }
    for at, (width, filters) in enumerate(FILTERS):
        shapes |= {f"CNN/W_cnn_{at}": (1, width, SIZE, filters), f"CNN/b_cnn_{at}": (filters,)}
    for at in range(2):
        for part in ("carry", "transform"):
            shapes |= {f"CNN_high_{at}/W_{part}": (many, many), f"CNN_high_{at}/b_{part}": (many,)}
        for direction in range(2):
            cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{at}/LSTMCell"
            shapes |= {
                f"{cell}/W_0": (2 * UNITS, 4 * CELLS),
                f"{cell}/B": (4 * CELLS,),
                f"{cell}/W_P_0": (CELLS, UNITS),
            }
    arrays = {key: random.normal(scale=0.7, size=shape).astype(np.float32) for key, shape in shapes.items()}
    path = directory / "elmo_tiny_weights.hdf5"
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    (directory / "elmo_tiny_options.json").write_text(json.dumps(OPTIONS))
    return path, arrays


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def word_vector(arrays: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """As bilm-tf: its ids are one less, since it has none for padding."""
    letters = arrays["char_embed"][np.array(ids) - 1]
    found = []
    for at, (width, _) in enumerate(FILTERS):
        kernel = arrays[f"CNN/W_cnn_{at}"][0]
        windows = [np.einsum("wc,wcf->f", letters[t : t + width], kernel) for t in range(WIDE - width + 1)]
        found.append(np.maximum(np.max(windows, axis=0) + arrays[f"CNN/b_cnn_{at}"], 0))
    x = np.concatenate(found)
    for at in range(2):
        gate = sigmoid(x @ arrays[f"CNN_high_{at}/W_carry"] + arrays[f"CNN_high_{at}/b_carry"])
        changed = np.maximum(x @ arrays[f"CNN_high_{at}/W_transform"] + arrays[f"CNN_high_{at}/b_transform"], 0)
        x = gate * changed + (1 - gate) * x
    return x @ arrays["CNN_proj/W_proj"] + arrays["CNN_proj/b_proj"]


def lstm(arrays: dict[str, np.ndarray], direction: int, layer: int, words: np.ndarray) -> np.ndarray:
    """TensorFlow's LSTMCell with num_proj, cell_clip, proj_clip and a forget bias of 1."""
    cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
    c, m, found = np.zeros(CELLS), np.zeros(UNITS), np.zeros_like(words)
    order = range(len(words)) if direction == 0 else reversed(range(len(words)))
    for t in order:
        gates = np.concatenate([words[t], m]) @ arrays[f"{cell}/W_0"] + arrays[f"{cell}/B"]
        i, j, f, o = np.split(gates, 4)
        c = np.clip(sigmoid(f + 1.0) * c + sigmoid(i) * np.tanh(j), -0.4, 0.4)
        m = np.clip((sigmoid(o) * np.tanh(c)) @ arrays[f"{cell}/W_P_0"], -0.3, 0.3)
        found[t] = m
    return found


def reference(arrays: dict[str, np.ndarray], ids: list[list[int]]) -> list[np.ndarray]:
    """The three layers [W, 2P] of one sentence of words."""
    begin, end = [word[:WIDE] + [261] * (WIDE - 3) for word in ([259, 257, 260], [259, 258, 260])]
    words = np.stack([word_vector(arrays, word) for word in (begin, *ids, end)])
    layers = [[words, words]]
    for at in range(2):
        states = [lstm(arrays, direction, at, layers[-1][direction]) for direction in range(2)]
        layers.append([new + old if at else new for new, old in zip(states, layers[-1], strict=True)])
    return [np.concatenate(both, axis=1)[1:-1] for both in layers]


def batch(labels: Any = None) -> dict[str, torch.Tensor]:
    encoded = ElmoTokenizer(max_characters_per_token=WIDE)(TEXTS, padding=True, return_tensors="pt")
    return dict(encoded) | ({} if labels is None else {"labels": torch.tensor(labels)})


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    directory = tmp_path_factory.mktemp("elmo")
    path, arrays = write_published(directory)
    convert("elmo", path, directory / "converted")
    return directory / "converted", arrays


def test_published_files_give_what_the_published_equations_give(published: tuple[Path, Any]) -> None:
    directory, arrays = published
    source = resolve_source(str(directory))
    tokenizer = source.load_tokenizer()
    model = build_pretrained(AutoModel, source, source.load_config(), seed=0).eval()
    assert new_parameters(model) == frozenset()
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        layers = model(**encoded).hidden_states
    assert len(layers) == 3
    for at, text in enumerate(TEXTS):
        row = tokenizer(text)["input_ids"]
        ids = [row[start : start + WIDE] for start in range(0, len(row), WIDE)]
        for found, expected in zip(layers, reference(arrays, ids), strict=True):
            np.testing.assert_allclose(found[at, : len(ids)].numpy(), expected, rtol=1e-4, atol=1e-5)
            assert not found[at, len(ids) :].any()


def test_heads_take_the_published_model_and_draw_only_themselves(published: tuple[Path, Any]) -> None:
    source = resolve_source(str(published[0]))
    for auto in (AutoModelForSequenceClassification, AutoModelForTokenClassification):
        model = build_pretrained(auto, source, source.load_config(num_labels=3), seed=0)
        assert new_parameters(model) == {"mixture.weights", "mixture.gamma", "classifier.weight", "classifier.bias"}
        check_structure(model, 2, set(new_parameters(model)))


@pytest.mark.parametrize(
    ("cells", "units", "highways", "millions"), [(1024, 128, 1, 13.6), (2048, 256, 1, 28.0), (4096, 512, 2, 93.6)]
)
def test_each_release_has_its_published_size(cells: int, units: int, highways: int, millions: float) -> None:
    config = ElmoConfig(lstm_size=cells, projection_size=units, highway_layers=highways)
    assert round(parameters_on_meta(AutoModel, config) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("auto", "labels"),
    [
        (AutoModelForSequenceClassification, [0, 2, 1]),
        (AutoModelForTokenClassification, [[0, 1, 2], [2, 1, 0], [1, -100, -100]]),
    ],
)
def test_heads_are_sources_learn_and_recompute(auto: Any, labels: Any, tmp_path: Path) -> None:
    check_is_a_source(auto, tiny(), tmp_path, batch(), "logits")
    check_scratch_follows_the_seed(auto, tiny(), tmp_path / "scratch")
    torch.manual_seed(0)
    model = auto.from_config(tiny())
    check_checkpointing_changes_nothing(model, batch(labels))
    check_learns(model, batch(labels), steps=20, rate=3e-2)


def test_a_batch_without_any_label_has_no_loss() -> None:
    model = AutoModelForTokenClassification.from_config(tiny())
    loss = model(**batch([[-100] * 3] * 3)).loss
    assert loss.item() == 0
    loss.backward()


def test_the_mixture_is_a_weighted_mean_scaled() -> None:
    mixture = ScalarMixture(3)
    with torch.no_grad():
        mixture.weights.copy_(torch.tensor([0.0, 1.0, -1.0]))
        mixture.gamma.fill_(2.0)
    shares = np.exp([0, 1, -1]) / np.exp([0, 1, -1]).sum()
    found = mixture(tuple(torch.full((1, 2, 4), value) for value in (1.0, 10.0, 100.0)))
    np.testing.assert_allclose(found.detach().numpy(), 2 * (shares @ [1, 10, 100]), rtol=1e-6)


def test_words_become_the_published_characters() -> None:
    """The marks 259 and 260 around the bytes plus one, filled with 261."""
    assert word_characters("yes", 8) == [259, 122, 102, 116, 260, 261, 261, 261]
    assert word_characters("é", 6) == [259, 196, 170, 260, 261, 261]
    assert word_characters("long" * 20) == [259, *[109, 112, 111, 104] * 12, 260]
    assert len(word_characters("x")) == 50


def test_rows_are_words_of_fifty_and_limits_count_words(tmp_path: Path) -> None:
    tokenizer = ElmoTokenizer(model_max_length=9)
    encoded = tokenizer(["It's fine, really.", "no"], padding=True)
    assert [len(row) for row in encoded["input_ids"]] == [250, 250]
    assert [sum(row) for row in encoded["attention_mask"]] == [250, 50]
    assert encoded.word_ids(1)[45:55] == [0] * 5 + [None] * 5
    assert len(tokenizer("a b c d", truncation=True, max_length=2)["input_ids"]) == 100
    assert len(tokenizer(" ".join("abcdefghijkl"), truncation=True)["input_ids"]) == 450
    assert len(tokenizer(["don't", "stop!"], is_split_into_words=True)["input_ids"]) == 100
    assert len(tokenizer("  ")["input_ids"]) == 50
    assert (tokenizer.pad_token_id, len(tokenizer)) == (0, 262)
    tokenizer.save_pretrained(tmp_path)
    tiny().save_pretrained(tmp_path)
    again = resolve_source(str(tmp_path)).load_tokenizer()
    assert isinstance(again, ElmoTokenizer)
    assert again("so it is")["input_ids"] == tokenizer("so it is")["input_ids"]
    assert again.model_max_length == 9


def test_both_forms_of_ids_are_one() -> None:
    model = AutoModelForSequenceClassification.from_config(tiny()).eval()
    flat = batch()
    cubic = {name: each.unflatten(1, (-1, WIDE)) for name, each in flat.items()}
    cubic["attention_mask"] = cubic["attention_mask"][:, :, 0]
    with torch.no_grad():
        assert torch.equal(model(**flat).logits, model(**cubic).logits)


def test_files_that_do_not_fit_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = write_published(tmp_path)
    options = tmp_path / "elmo_tiny_options.json"
    with h5py.File(path, "a") as file:
        del file["CNN_high_1/W_carry"]
    with pytest.raises(ModelError, match="has no CNN_high_1/W_carry"):
        convert("elmo", path, tmp_path / "out")
    write_published(tmp_path)
    options.write_text(json.dumps({**OPTIONS, "lstm": {**OPTIONS["lstm"], "dim": CELLS + 1}}))
    with pytest.raises(ModelError, match=r"has layers\.0\..* instead of"):
        convert("elmo", path, tmp_path / "out")
    options.write_text(json.dumps({"lstm": OPTIONS["lstm"]}))
    with pytest.raises(ModelError, match="has no 'char_cnn'"):
        convert("elmo", path, tmp_path / "out")
    options.unlink()
    with pytest.raises(ModelError, match=r"needs one options\.json beside it"):
        convert("elmo", path, tmp_path / "out")
    write_published(tmp_path)
    path.write_bytes(b"not HDF5")
    with pytest.raises(ModelError, match="cannot be read as ELMo's HDF5 weights"):
        convert("elmo", path, tmp_path / "out")
    really = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return really(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError, match="pip install h5py"):
        convert("elmo", path, tmp_path / "out")


def test_bad_values_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="no wider than 12 characters"):
        tiny(filters=[[13, 2]])
    with pytest.raises(ValueError, match="vocab_size is 100"):
        tiny(vocab_size=100)
    model = AutoModel.from_config(tiny())
    with pytest.raises(ValueError, match=r"\[2, 13\].*\[batch, words, 12\]"):
        model(torch.ones(2, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="no pairs"):
        ElmoTokenizer()("one", "two")
