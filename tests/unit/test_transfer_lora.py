"""LoRA: which layers get updates, what trains, and that nothing changes before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text_model import BLOCKS, tiny_recipe
from torch import nn

from tlcore.errors import RecipeError
from tlcore.recipe import apply_point, recipe_from_dict, trial_point
from tlcore.tasks import build_task
from tlcore.transfer import apply_strategy, parameter_groups

pytestmark = pytest.mark.unit

TOP = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
LINEAR_LAYERS_OF_A_BLOCK = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def prepared(home: Path, **changes: Any) -> Any:
    recipe = tiny_recipe(home, transfer__strategy="lora", **changes)
    model = build_task(recipe).build_model(from_scratch=False)
    apply_strategy(model, recipe)
    return model


def adapted(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if hasattr(module, "base_layer")]


def updates(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def test_updates_and_what_follows_the_blocks_train_and_nothing_else(home: Path) -> None:
    model = prepared(home)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == TOP | set(updates(model))
    assert len(adapted(model)) == LINEAR_LAYERS_OF_A_BLOCK * BLOCKS
    assert all(".encoder.layer." in name for name in adapted(model))
    assert {parameter.shape[0] for name, parameter in updates(model).items() if "lora_A" in name} == {8}


def test_the_first_forward_pass_is_the_sources(home: Path) -> None:
    recipe = tiny_recipe(home)
    plain: Any = build_task(recipe).build_model(from_scratch=False).eval()
    tokens = torch.tensor([[2, 4, 6, 3]])
    with torch.no_grad():
        assert torch.equal(prepared(home).eval()(input_ids=tokens).logits, plain(input_ids=tokens).logits)


def test_updates_follow_the_seed_and_leave_the_callers_random_state(home: Path) -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    first = updates(prepared(home, train__seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    again, other = updates(prepared(home, train__seed=1)), updates(prepared(home, train__seed=2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert all(torch.equal(value, other[name]) == ("lora_B" in name) for name, value in first.items())


def test_rank_alpha_and_dropout_reach_the_layers(home: Path) -> None:
    model = prepared(home, transfer__rank=4, transfer__alpha=6.0, transfer__dropout=0.25)
    layer = model.bert.encoder.layer[0].attention.self.query
    assert layer.lora_A["default"].weight.shape == (4, 16)
    assert layer.scaling["default"] == 1.5
    assert layer.lora_dropout["default"].p == 0.25
    assert layer.lora_dropout["default"].training and not model.bert.embeddings.dropout.training
    assert prepared(home, transfer__rank=4).bert.encoder.layer[0].attention.self.query.scaling["default"] == 2.0


def test_layers_are_named_by_the_ends_of_their_names(home: Path) -> None:
    named = adapted(prepared(home, transfer__target_modules=["query", "layer.1.output.dense"]))
    assert [name for name in named if name.endswith("query")] == [
        f"bert.encoder.layer.{block}.attention.self.query" for block in range(BLOCKS)
    ]
    assert set(named) - {name for name in named if name.endswith("query")} == {"bert.encoder.layer.1.output.dense"}


WRONG = {
    "qury": r"no layer is called 'qury'; there are query, key, value, dense, classifier",
    "LayerNorm": r"'LayerNorm' means bert\.embeddings\.LayerNorm, which is no linear layer",
    "classifier": r"'classifier' means classifier, which is the head and is trained whole; take it out",
    "word_embeddings": r"'word_embeddings' means .*word_embeddings, which is no linear layer",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_cannot_be_adapted_is_said(home: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=rf"transfer\.target_modules: {WRONG[name]}"):
        prepared(home, transfer__target_modules=["key", name])


def test_a_layer_tied_to_another_is_refused_by_name_and_left_out_by_auto(home: Path) -> None:
    """SmolLM2, Llama-3.2-1B and GPT-2: what the update of such an output layer had learned was in no export."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def tied() -> Any:
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16))
        first, second = model.transformer.h
        second.mlp.c_fc.weight = first.mlp.c_fc.weight
        return model

    def recipe(layers: Any) -> Any:
        return tiny_recipe(home, transfer__strategy="lora", transfer__target_modules=layers)

    for name, other in (("lm_head", "transformer.wte"), ("h.1.mlp.c_fc", "transformer.h.0.mlp.c_fc")):
        said = rf"'{name}' means .*{name}, whose weight is tied to {other}: .*take it out"
        with pytest.raises(RecipeError, match=said):
            apply_strategy(tied(), recipe(["c_attn", name]))
    model = tied()
    apply_strategy(model, recipe("auto"))
    ends = ("attn.c_attn", "attn.c_proj", "mlp.c_proj")
    assert adapted(model) == [f"transformer.h.{block}.{end}" for block in range(2) for end in ends]


def test_a_model_without_blocks_needs_names(home: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.tlcore_new_parameters = frozenset({"1.weight", "1.bias"})
    with pytest.raises(RecipeError, match=r"target_modules: is auto, but Sequential has no list of like blocks"):
        apply_strategy(model, tiny_recipe(home, transfer__strategy="lora"))


def test_updates_decay_as_matrices_do(home: Path) -> None:
    model = prepared(home)
    decayed, plain = parameter_groups(model, tiny_recipe(home, transfer__strategy="lora"))
    assert set(updates(model)) <= set(decayed["names"])
    assert set(plain["names"]) == {"bert.pooler.dense.bias", "classifier.bias"}


def test_a_search_may_choose_between_strategies_with_their_own_settings(home: Path) -> None:
    space = {
        "transfer.strategy": {"choice": ["full", "lora"]},
        "transfer.rank": {"choice": [2, 4], "when": {"transfer.strategy": "lora"}},
        "transfer.alpha": {"uniform": [1.0, 8.0], "when": {"transfer.strategy": "lora"}},
    }
    recipe = recipe_from_dict(tiny_recipe(home).to_dict() | {"search": {"space": space, "trials": 8}})
    seen = set()
    for index in range(8):
        trial = apply_point(recipe, trial_point(recipe, 0, index)).transfer
        seen.add(trial.strategy)
        assert (trial.rank in (2, 4)) == (trial.alpha is not None) == (trial.strategy == "lora")
    assert seen == {"full", "lora"}
