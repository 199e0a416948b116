"""Text families: BERT and what is like it, at the size of a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = (
    "good",
    "bad",
    "film",
    "a",
    "the",
    "very",
    "not",
    "plot",
    "slow",
    "fine",
    "is",
    "was",
    "long",
    "dull",
    "kind",
    "sharp",
)
SAMPLES = 40


def save_tokenizer(directory: Path) -> Any:
    """A word-level tokenizer with the special tokens that the families ask for."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: index for index, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )
    fast.save_pretrained(directory)
    return fast


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def snippets(count: int = SAMPLES) -> list[dict[str, Any]]:
    """Texts of differing length whose label is their first word's."""
    rows = []
    for number in range(count):
        words = [WORDS[number % 2], *(WORDS[2 + (number * 7 + k) % 14] for k in range(2 + number % 5))]
        rows.append({"text": " ".join(words), "label": ("pos", "neg")[number % 2]})
    return rows


def save(directory: Path, config: Any, model_class: str) -> str:
    """A random model of this configuration as a pre-trained source."""
    import torch
    import transformers

    torch.manual_seed(3)
    getattr(transformers, model_class)(config).save_pretrained(directory)
    return str(directory)


def classification(model_class: str, config_class: str, **settings: Any) -> Callable[[Path], dict[str, Any]]:
    def make(home: Path) -> dict[str, Any]:
        import transformers

        tokenizer = save_tokenizer(home)
        config = getattr(transformers, config_class)(vocab_size=len(tokenizer), pad_token_id=0, **settings)
        source = save(home, config, model_class)
        return {
            "model": {"source": source},
            "data": {"train": write_rows(home / "rows.jsonl", snippets()), "max_length": 16},
        }

    return make


ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}

MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "bert/text-classification": classification("BertModel", "BertConfig", **ENCODER),
    "roberta/text-classification": classification("RobertaModel", "RobertaConfig", **ENCODER),
    "distilbert/text-classification": classification(
        "DistilBertModel",
        "DistilBertConfig",
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=40,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        initializer_range=0.3,
    ),
}
"""Row's name -> makes the model under a directory and returns the recipe's sections that differ."""
