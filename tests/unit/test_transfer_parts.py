"""Parts named in a recipe, rates by block, biases alone: what trains, at which rate, and what is said of wrong names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_text_model import BLOCKS, tiny_recipe
from torch import nn

from tlcore.errors import RecipeError
from tlcore.recipe import apply_point, recipe_from_dict, trial_point
from tlcore.tasks import build_task
from tlcore.transfer import apply_strategy, parameter_groups, read_structure
from tlcore.transfer.naming import named_parameters

pytestmark = pytest.mark.unit

TOP = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def prepared(home: Path, **changes: Any) -> tuple[nn.Module, Any]:
    recipe = tiny_recipe(home, **{f"transfer__{key}": value for key, value in changes.items()})
    model = build_task(recipe).build_model(from_scratch=False)
    apply_strategy(model, recipe)
    return model, recipe


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def part(name: str) -> str:
    """`embeddings`, the number of its block, or `head`."""
    words = name.split(".")
    return words[3] if "layer" in words else "embeddings" if "embeddings" in words else "head"


ALL = {"embeddings", "0", "1", "2", "head"}
FROZEN = {
    "embeddings": {"embeddings"},
    "encoder": {"0", "1", "2"},
    "encoder.1": {"1"},
    "encoder.0-1": {"0", "1"},
    "head": {"head"},
    "bert.embeddings": {"embeddings"},
    "bert.encoder.layer.2.*": {"2"},
    "*.layer.[01].*": {"0", "1"},
}


@pytest.mark.parametrize("strategy", ["full", "layerwise"])
@pytest.mark.parametrize("name", FROZEN)
def test_a_named_part_is_frozen_and_the_rest_trains(home: Path, strategy: str, name: str) -> None:
    model, _ = prepared(home, strategy=strategy, freeze=name)
    frozen = {each for each, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {part(each) for each in frozen} == FROZEN[name]
    assert {part(each) for each in trained(model)} == ALL - FROZEN[name]


def test_named_parts_train_without_what_is_named_to_be_frozen(home: Path) -> None:
    model, _ = prepared(home, train=["encoder.1-2", "head"], freeze=["*.LayerNorm", "encoder.1"])
    assert {part(name) for name in trained(model)} == {"2", "head"}
    assert not any("LayerNorm" in name for name in trained(model))


WRONG = {
    (
        "freeze",
        "encoder.0-3",
    ): r"'encoder\.0-3' is not in BertForSequenceClassification, which has 3 blocks: encoder\.0-2",
    ("freeze", "encoder.7"): r"'encoder\.7' is not in BertForSequenceClassification, which has 3 blocks: encoder\.0-2",
    ("freeze", "embedings"): r"'embedings' matches no parameter of BertForSequenceClassification; close are embeddings",
    ("train", "*.quary.*"): r"'\*\.quary\.\*' matches no .*; close are bert\.encoder\.layer\.0\.attention\.self\.query",
    ("train", "bert.poler"): r"'bert\.poler' matches no parameter of .*; close are bert\.pooler",
    ("train", "xyzzy"): r"'xyzzy' matches no parameter of .*; close are embeddings, encoder, head, encoder\.0-2",
}


@pytest.mark.parametrize(("key", "name"), WRONG)
def test_a_name_that_means_nothing_is_said_with_what_is_close(home: Path, key: str, name: str) -> None:
    with pytest.raises(RecipeError, match=rf"transfer\.{key}: {WRONG[key, name]}"):
        prepared(home, **{key: name})


def test_every_wrong_name_is_said(home: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        prepared(home, freeze=["embeddings", "nowhere", "encoder.9"])
    assert len(caught.value.faults) == 2


def test_something_must_train(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"transfer\.freeze: names all of BertForSequenceClassification"):
        prepared(home, freeze=["embeddings", "encoder", "head"])


def test_a_model_without_blocks_has_no_numbered_parts(home: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for name, said in {
        "encoder.0": "has no list of like blocks; give a pattern",
        "head": "is empty in Sequential",
    }.items():
        with pytest.raises(RecipeError, match=said):
            apply_strategy(model, tiny_recipe(home, transfer__freeze=name))
    with pytest.raises(RecipeError, match=r"transfer\.strategy: is 'layerwise', but Sequential has no list of like"):
        parameter_groups(model, tiny_recipe(home, transfer__strategy="layerwise"))


def test_rates_fall_from_the_head_down_block_by_block(home: Path) -> None:
    model, recipe = prepared(home, strategy="layerwise", decay=0.5)
    groups = parameter_groups(model, recipe)
    rates = {name: group["rate"] for group in groups for name in group["names"]}
    assert set(rates) == {name for name, _ in model.named_parameters()}
    expected = {"head": 1.0, "2": 0.5, "1": 0.25, "0": 0.125, "embeddings": 0.0625}
    assert rates == {name: expected[part(name)] for name in rates}
    assert len(groups) == 2 * (BLOCKS + 2)
    assert all(group["weight_decay"] == 0 for group in groups for each in group["params"] if each.ndim < 2)


def test_without_layerwise_all_rates_are_the_recipes(home: Path) -> None:
    model, recipe = prepared(home)
    assert {group["rate"] for group in parameter_groups(model, recipe)} == {1.0}
    assert recipe_from_dict({**recipe.to_dict(), "transfer": {"strategy": "layerwise"}}).transfer.layer_decay == 0.9


def test_bitfit_trains_the_head_and_every_bias(home: Path) -> None:
    model, _ = prepared(home, strategy="bitfit")
    assert trained(model) == TOP | {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert "bert.encoder.layer.0.output.LayerNorm.bias" in trained(model)
    assert "bert.encoder.layer.0.output.LayerNorm.weight" not in trained(model)


def test_bitfit_needs_biases(home: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    model.tlcore_new_parameters = frozenset({"1.weight", "1.bias"})
    with pytest.raises(
        RecipeError, match=r"transfer\.strategy: is 'bitfit', but Sequential has no biases below its head"
    ):
        apply_strategy(model, tiny_recipe(home, transfer__strategy="bitfit"))


def test_a_search_may_vary_parts_and_rates(home: Path) -> None:
    space = {
        "transfer.strategy": {"choice": ["full", "layerwise", "bitfit", "dora", "gradual"]},
        "transfer.freeze": {"choice": ["embeddings", "encoder.0-1"], "when": {"transfer.strategy": "full"}},
        "transfer.decay": {"uniform": [0.5, 1.0], "when": {"transfer.strategy": ["layerwise", "gradual"]}},
        "transfer.schedule": {"uniform": [0.2, 0.8], "when": {"transfer.strategy": "gradual"}},
        "transfer.rank": {"choice": [2, 4], "when": {"transfer.strategy": "dora"}},
    }
    recipe = recipe_from_dict(tiny_recipe(home).to_dict() | {"search": {"space": space, "trials": 30}})
    seen = set()
    for index in range(30):
        trial = apply_point(recipe, trial_point(recipe, 0, index)).transfer
        seen.add(trial.strategy)
        assert bool(trial.named("freeze")) == (trial.strategy == "full")
        assert (trial.decay is not None) == (trial.strategy in ("layerwise", "gradual"))
        assert isinstance(trial.schedule, float) == (trial.strategy == "gradual")
    assert len(seen) == 5


SIZES = {
    "d_model": 8,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}


def translator(layers: tuple[int, int]) -> nn.Module:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=11, **SIZES, encoder_layers=layers[0], decoder_layers=layers[1], max_position_embeddings=16
    )
    return BartForConditionalGeneration(config)


def listener() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    config = WhisperConfig(vocab_size=11, **SIZES, encoder_layers=2, decoder_layers=2, num_mel_bins=4, **tokens)
    return WhisperForConditionalGeneration(config)


@pytest.mark.parametrize(
    "model", [translator((2, 2)), translator((3, 1)), listener()], ids=["equal", "short decoder", "whisper"]
)
def test_encoder_and_decoder_are_told_apart(model: nn.Module) -> None:
    structure = read_structure(model)
    for part in ("encoder", "decoder"):
        found = named_parameters(model, structure, [part], "transfer.freeze")
        blocks = {name for name, _ in model.named_parameters() if name.startswith(f"model.{part}.layers.")}
        assert blocks and blocks <= found and all(name.startswith(f"model.{part}.") for name in found)
        first = named_parameters(model, structure, [f"{part}.0"], "transfer.freeze")
        assert first <= found and {name.split(".")[3] for name in first if ".layers." in name} == {"0"}
    everything = [
        *structure.before,
        *(name for block in structure.blocks for name in block),
        *structure.after,
        *structure.head,
    ]
    assert sorted(everything) == sorted(name for name, _ in model.named_parameters()), "each parameter is in one part"


def test_the_encoders_last_norm_goes_with_its_last_block() -> None:
    structure = read_structure(listener())
    assert (
        "model.encoder.layer_norm.weight" in structure.blocks[1]
        and "model.decoder.layer_norm.weight" in structure.after
    )
    assert all(
        "layernorm_embedding" not in name for block in read_structure(translator((2, 2))).blocks for name in block
    )


def test_a_block_that_an_encoder_or_a_decoder_does_not_have() -> None:
    model = translator((3, 1))
    with pytest.raises(
        RecipeError, match=r"'decoder\.1' is not in Bart.*, which has 4 blocks: encoder\.0-2, decoder\.0-0"
    ):
        named_parameters(model, read_structure(model), ["decoder.1"], "transfer.freeze")


def test_a_model_without_a_decoder_beside_its_encoder_has_no_part_of_that_name(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"'decoder' is not in BertFor.*, which has 3 blocks: encoder\.0-2"):
        prepared(home, freeze="decoder")


def test_low_rank_updates_reach_encoder_and_decoder() -> None:
    from tlcore.transfer.lora import _modules_of_blocks

    inside = _modules_of_blocks(read_structure(translator((2, 2))))
    assert {name.split(".")[1] for name in inside} == {"encoder", "decoder"}
