"""The families of `tlcore/models/families` at the size of a test, by way of the tasks; DeepSpeech is among the speech families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.families.text import save_tokenizer, snippets, write_rows


def _save(model: Any, config: Any, home: Path, processor: Any = None) -> str:
    import torch

    torch.manual_seed(3)
    model(config).save_pretrained(home)
    if processor is not None:
        processor.save_pretrained(home)
    return str(home)


def elmo(home: Path) -> dict[str, Any]:
    from tlcore.models.families.elmo import ElmoConfig, ElmoModel
    from tlcore.models.families.elmo_tokens import ElmoTokenizer

    sizes = {"filters": [[1, 3], [2, 4]], "character_size": 4, "projection_size": 8, "lstm_size": 8}
    config = ElmoConfig(**sizes, max_characters_per_token=8, dropout=0.0)
    source = _save(ElmoModel, config, home / "model", ElmoTokenizer(max_characters_per_token=8))
    data = {"train": write_rows(home / "rows.jsonl", snippets()), "max_length": 16}
    return {"model": {"source": source}, "data": data, "train": {"learning_rate": 1e-1, "epochs": 3}}


def transfo_xl(home: Path) -> dict[str, Any]:
    from tlcore.models.families.transfo_xl import TransfoXLConfig, TransfoXLForCausalLM

    words = len(save_tokenizer(home / "model", end="[SEP]"))
    sizes = {
        "vocab_size": words,
        "cutoffs": [8, 14],
        "d_model": 8,
        "d_embed": 8,
        "n_head": 2,
        "d_head": 4,
        "d_inner": 16,
    }
    config = TransfoXLConfig(**sizes, div_val=2, n_layer=2, mem_len=6, dropout=0.0, init_std=0.2, eos_token_id=3)
    source = _save(TransfoXLForCausalLM, config, home / "model")
    data = {"train": write_rows(home / "rows.jsonl", snippets()), "max_length": 16}
    return {"model": {"source": source}, "data": data, "predict": ["good film"]}


def yolox(home: Path) -> dict[str, Any]:
    import transformers

    from tests.families.images import boxed_pictures
    from tlcore.models.families.yolo import YoloxConfig, YoloxForObjectDetection

    processor = transformers.YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    source = _save(YoloxForObjectDetection, YoloxConfig(width=0.125, depth=0.33), home / "model", processor)
    # Few steps of all pictures: which places answer for an object is a choice, and one that rounding turned changes what follows.
    train = {"learning_rate": 2e-3, "epochs": 4, "global_batch_size": 36}
    return {"model": {"source": source}, "data": {"train": boxed_pictures(home)}, "train": train}


MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "elmo/text-classification": elmo,
    "transfo-xl/text-generation": transfo_xl,
    "yolox/object-detection": yolox,
}
