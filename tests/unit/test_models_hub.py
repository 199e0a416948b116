"""What is fetched of a hub id, from a hub on this machine."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from served_hub import COMMIT, served_hub

from tlcore.errors import ModelError
from tlcore.models import resolve_source

pytestmark = pytest.mark.unit

WANTED = (
    "config.json",
    "model.safetensors",
    "vocab.txt",
    "spiece.model",
    "chat_template.jinja",
    "source.spm",
    "target.spm",
    "bpe.codes",
    "qwen.tiktoken",
)
OTHER = ("README.md", "onnx/model.onnx", "onnx/config.json", "other/model.safetensors", "pytorch_model.bin", "own.py")


def files_of(*names: str) -> dict[str, bytes]:
    return dict.fromkeys(names, b"{}")


def test_all_that_a_model_needs_is_fetched_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served_hub(files_of(*WANTED, *OTHER), tmp_path, monkeypatch):
        found = resolve_source("someone/whole")
        assert found.revision == COMMIT
        assert sorted(path.name for path in found.directory.iterdir()) == sorted(WANTED)
        with_code = resolve_source("someone/whole-code", revision=COMMIT, trust_remote_code=True)
        assert (with_code.directory / "own.py").exists()


def test_marian_splits_words_by_its_sentencepiece_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but `source.spm` and `target.spm` says how; no repository of Marian has a tokenizer.json."""
    import sentencepiece

    model = io.BytesIO()
    texts = iter(["a good film", "a bad film", "no film is good or bad"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=model, vocab_size=30, hard_vocab_limit=False, minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = {pieces.id_to_piece(index): index for index in range(len(pieces))}
    files = {
        "config.json": b'{"model_type": "marian"}',
        "vocab.json": json.dumps({**vocabulary, "<pad>": len(vocabulary)}).encode(),
        "tokenizer_config.json": b'{"source_lang": "en", "target_lang": "de"}',
        "source.spm": model.getvalue(),
        "target.spm": model.getvalue(),
    }
    with served_hub(files, tmp_path, monkeypatch):
        tokenizer = resolve_source("someone/opus").load_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("good film")["input_ids"])
    assert tokens == [*pieces.encode("good film", out_type=str), "</s>"]


def test_a_pickle_that_the_hub_has_alone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of("config.json", "optimizer.pt", "pytorch_model.bin", "training_args.bin", "onnx/model.bin")
    with served_hub(files, tmp_path, monkeypatch) as asked:
        found = resolve_source("someone/pickled")
        for _ in range(2):
            with pytest.raises(ModelError, match=r"has only pytorch_model\.bin, a pickle") as caught:
                found.weight_files()
        assert "from_pretrained" in str(caught.value.hint)
        assert "model.revision: refs/pr/<its number>" in str(caught.value.hint)
        assert asked.count(f"/api/models/someone/pickled/revision/{COMMIT}") == 1


def test_without_weights_of_any_kind_the_message_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        served_hub(files_of("config.json", "tf_model.h5"), tmp_path, monkeypatch),
        pytest.raises(ModelError, match=r"has no \*\.safetensors file"),
    ):
        resolve_source("someone/weightless").weight_files()


def test_a_hub_that_went_away_leaves_the_plain_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served_hub(files_of("config.json", "pytorch_model.bin"), tmp_path, monkeypatch):
        found = resolve_source("someone/away")
    with pytest.raises(ModelError, match=r"has no \*\.safetensors file"):
        found.weight_files()


def test_a_cache_filled_in_part_is_said_where_the_hub_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that was filled before chat templates were fetched."""
    with served_hub(files_of("config.json", "chat_template.jinja"), tmp_path, monkeypatch):
        directory = resolve_source("someone/part").directory
    (directory / "chat_template.jinja").unlink()
    from tlcore.models.source import _hub_directory

    _hub_directory.cache_clear()
    with pytest.raises(ModelError, match="the hub cache lacks some of its files, and the hub cannot be reached"):
        resolve_source("someone/part")
