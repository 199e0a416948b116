"""Models that see: their blocks are the language model's, also where the vision tower is the deeper one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_text_model import tiny_recipe
from torch import nn

from tlcore.transfer import apply_strategy, read_structure
from tlcore.transfer.structure import block_names

pytestmark = pytest.mark.unit

BLOCKS = 2
SEES = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32}
TELLS = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 0,
}


def llava() -> nn.Module:
    import transformers as hf

    vision = hf.CLIPVisionConfig(**SEES, projection_dim=16, patch_size=16)
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=vision, text_config=hf.LlamaConfig(**TELLS), image_token_index=5)
    )


def idefics3() -> nn.Module:
    import transformers as hf

    return hf.Idefics3ForConditionalGeneration(
        hf.Idefics3Config(
            vision_config={**SEES, "patch_size": 8},
            text_config=hf.LlamaConfig(**TELLS),
            image_token_id=5,
            scale_factor=2,
            pad_token_id=0,
        )
    )


def qwen2_vl() -> nn.Module:
    import transformers as hf

    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    return hf.Qwen2VLForConditionalGeneration(
        hf.Qwen2VLConfig(
            vision_config={"depth": 5, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2},
            text_config={**TELLS, "rope_parameters": rope},
        )
    )


def kosmos2() -> nn.Module:
    """Its vision tower is registered behind its language model."""
    import transformers as hf

    tells = {"vocab_size": 20, "layers": BLOCKS, "embed_dim": 16, "ffn_dim": 32, "attention_heads": 2}
    return hf.Kosmos2ForConditionalGeneration(
        hf.Kosmos2Config(text_config=tells, vision_config={**SEES, "patch_size": 16}, latent_query_num=2)
    )


MODELS = {
    "llava": (llava, "model.language_model.layers"),
    "idefics3": (idefics3, "model.text_model.layers"),
    "qwen2_vl": (qwen2_vl, "model.language_model.layers"),
    "kosmos2": (kosmos2, "text_model.model.layers"),
}


@pytest.mark.parametrize("family", MODELS)
def test_the_blocks_are_the_language_models(family: str) -> None:
    make, blocks = MODELS[family]
    model = make()
    parts = read_structure(model)
    assert block_names(model) == [f"{blocks}.{number}" for number in range(BLOCKS)]
    assert len(parts.blocks) == parts.encoders == BLOCKS
    assert all(name.startswith(f"{blocks}.1.") for name in parts.blocks[1])
    assert not any("vision" in name or "visual" in name for name in (*parts.after, *parts.head))
    assert any("vision" in name or "visual" in name for name in parts.before)
    everything = [*parts.before, *(name for block in parts.blocks for name in block), *parts.after, *parts.head]
    assert sorted(everything) == sorted(name for name, _ in model.named_parameters())


def trained(tmp_path: Path, **transfer: Any) -> set[str]:
    model = qwen2_vl()
    apply_strategy(model, tiny_recipe(tmp_path, **{f"transfer__{key}": value for key, value in transfer.items()}))
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_updates_lie_beside_the_language_models_layers(tmp_path: Path) -> None:
    updates = {name for name in trained(tmp_path, strategy="lora") if ".lora_" in name}
    assert updates
    assert all(name.startswith("model.language_model.layers.") for name in updates)


def test_the_last_block_is_the_one_before_the_answer(tmp_path: Path) -> None:
    found = trained(tmp_path, strategy="last_n", n=1)
    assert any(name.startswith("model.language_model.layers.1.") for name in found)
    assert not any(name.startswith(("model.visual.", "model.language_model.layers.0.")) for name in found)


def test_the_encoder_to_be_frozen_is_the_language_model(tmp_path: Path) -> None:
    found = trained(tmp_path, strategy="full", freeze="encoder")
    assert not any(name.startswith("model.language_model.layers.") for name in found)
    assert any(name.startswith("model.visual.blocks.") for name in found)
