"""A whole pre-trained text model, made in milliseconds: random weights, a real tokenizer over a few words, and a recipe for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tlcore.recipe import Recipe, recipe_from_dict

WORDS = ("good", "bad", "film", "a", "the", "very", "not", "plot", "slow", "fine")
BLOCKS = 3


def save_tokenizer(directory: Path) -> int:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=16,
    ).save_pretrained(directory)
    return len(vocabulary)


def save_tiny_bert(directory: Path, *, classes: int | None = None, seed: int = 5) -> Path:
    """BERT of 3 blocks and 16 dimensions: the bare backbone, or with a classifier of `classes`."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    from tlcore.models import quiet

    directory.mkdir(parents=True, exist_ok=True)
    config = BertConfig(
        vocab_size=save_tokenizer(directory),
        hidden_size=16,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=classes or 2,
    )
    torch.manual_seed(seed)
    with quiet():
        (BertForSequenceClassification(config) if classes else BertModel(config)).save_pretrained(directory)
    return directory


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def snippets(count: int) -> list[dict[str, Any]]:
    """Texts of 1 to 7 words with labels `neg` and `pos` in turn."""
    return [
        {
            "text": " ".join(WORDS[(number * 7 + place) % len(WORDS)] for place in range(1 + number % 7)),
            "label": "pos" if number % 2 else "neg",
        }
        for number in range(count)
    ]


def tiny_recipe(directory: Path, **changes: Any) -> Recipe:
    """A recipe over a tiny BERT and 40 snippets in `directory`; `changes` are dotted keys with `__` for the dot."""
    model, train = directory / "model", directory / "train.jsonl"
    if not model.exists():
        save_tiny_bert(model)
    if not train.exists():
        write_rows(train, snippets(40))
    data: dict[str, Any] = {
        "name": "tiny",
        "task": "text-classification",
        "model": {"source": str(model)},
        "data": {"train": str(train), "validation": 0.25, "max_length": 8},
        "transfer": {},
        "train": {"global_batch_size": 8},
        "storage": str(directory / "store"),
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        data.setdefault(section, {})[name] = value
    return recipe_from_dict(data)
