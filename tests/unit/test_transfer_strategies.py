"""What trains under each strategy, found in networks of several families, and what freezing really saves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text_model import BLOCKS, tiny_recipe
from torch import nn

from tests.families import text
from tlcore.errors import RecipeError
from tlcore.models import is_carried
from tlcore.recipe import Recipe, recipe_from_dict
from tlcore.tasks import build_task, telling
from tlcore.transfer import apply_strategy, parameter_groups, read_structure, set_training_mode

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def prepared(home: Path, **changes: Any) -> tuple[nn.Module, Any, Any]:
    recipe = tiny_recipe(home, **changes)
    task = build_task(recipe)
    model = task.build_model(from_scratch=changes.get("transfer__strategy") == "scratch")
    apply_strategy(model, recipe)
    return model, task, recipe


def language_model(home: Path, made: dict[str, Any], task: str, transfer: dict[str, Any]) -> tuple[Any, Recipe]:
    """The pre-trained model of a made family, as its task builds it, and the recipe that asks for the strategy."""
    sections = {"model": made["model"], "data": made["data"], "storage": str(home / "store"), "transfer": transfer}
    recipe = recipe_from_dict({"name": "made", "task": task, **sections})
    return build_task(recipe).build_model(from_scratch=False), recipe


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


TOP = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("strategy", ["full", "scratch"])
def test_full_and_scratch_train_all(home: Path, strategy: str) -> None:
    model, _, _ = prepared(home, transfer__strategy=strategy)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_head_trains_what_follows_the_last_block(home: Path) -> None:
    model, _, _ = prepared(home, transfer__strategy="head")
    assert trained(model) == TOP


@pytest.mark.parametrize("n", [1, 2, BLOCKS])
def test_last_n_trains_the_last_blocks_too(home: Path, n: int) -> None:
    model, _, _ = prepared(home, transfer__strategy="last_n", transfer__n=n)
    inside = {name for name in trained(model) if "encoder.layer" in name}
    assert {name.split(".")[3] for name in inside} == {str(index) for index in range(BLOCKS - n, BLOCKS)}
    assert trained(model) - inside == TOP
    assert len(inside) == 16 * n


def test_more_blocks_than_there_are_is_said(home: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"transfer\.n: is 4, but BertForSequenceClassification has 3 blocks; give 1 to 3"
    ):
        prepared(home, transfer__strategy="last_n", transfer__n=4)


def test_frozen_parts_are_fixed_functions_and_trained_ones_keep_dropout(home: Path) -> None:
    model, _, _ = prepared(home, transfer__strategy="last_n", transfer__n=1)
    bert: Any = model.bert
    for _ in range(2):
        assert not any(module.training for module in bert.embeddings.modules())
        assert not any(module.training for layer in bert.encoder.layer[:-1] for module in layer.modules())
        assert all(module.training for module in bert.encoder.layer[-1].modules())
        assert model.dropout.training and bert.pooler.training
        model.eval()
        set_training_mode(model)


def test_a_frozen_backbone_records_no_graph(home: Path) -> None:
    """Counts the tensors that autograd keeps for the backward pass: what a frozen part would cost in memory and time."""
    kept = {}
    for strategy in ("head", "full"):
        model, task, _ = prepared(home, transfer__strategy=strategy)
        outputs: list[torch.Tensor] = []
        model.bert.encoder.layer[-1].register_forward_hook(lambda module, given, out, keep=outputs: keep.append(out))
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, to=saved: to.append(tensor.numel()) or tensor, lambda t: t
        ):
            task.loss(model, task.collate("train", range(8))).backward()
        kept[strategy] = len(saved)
        assert outputs[0].requires_grad == (strategy == "full")
    assert kept["head"] < 15 < 50 < kept["full"]


def test_only_trained_parameters_are_grouped_and_vectors_do_not_decay(home: Path) -> None:
    model, _, recipe = prepared(home, transfer__strategy="head", train__weight_decay=0.1)
    groups = parameter_groups(model, recipe)
    assert [(group["names"], group["weight_decay"]) for group in groups] == [
        (["bert.pooler.dense.weight", "classifier.weight"], 0.1),
        (["bert.pooler.dense.bias", "classifier.bias"], 0.0),
    ]
    by_name = dict(model.named_parameters())
    assert all(
        by_name[name] is given for group in groups for name, given in zip(group["names"], group["params"], strict=True)
    )


def test_without_decay_there_is_one_group(home: Path) -> None:
    model, _, recipe = prepared(home, train__weight_decay=0.0)
    (group,) = parameter_groups(model, recipe)
    assert len(group["params"]) == len(list(model.parameters()))


def tiny(model_type: str) -> nn.Module:
    """Other families, at toy size and with random weights, through their own configuration classes."""
    import transformers as hf

    configs = {
        "roberta": lambda: hf.RobertaConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
        ),
        "distilbert": lambda: hf.DistilBertConfig(vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=8),
        "gpt2": lambda: hf.GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, pad_token_id=0),
        "llama": lambda: hf.LlamaConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=8,
            pad_token_id=0,
        ),
        "deberta": lambda: hf.DebertaV2Config(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=8,
            relative_attention=True,
            max_relative_positions=8,
        ),
    }
    return hf.AutoModelForSequenceClassification.from_config(configs[model_type]())


FAMILIES = {
    "roberta": ("roberta.encoder.layer.1.", set(), {"classifier.dense", "classifier.out_proj"}),
    "distilbert": ("distilbert.transformer.layer.1.", set(), {"pre_classifier", "classifier"}),
    "gpt2": ("transformer.h.1.", {"transformer.ln_f"}, {"score"}),
    "llama": ("model.layers.1.", {"model.norm"}, {"score"}),
    "deberta": ("deberta.encoder.layer.1.", set(), {"pooler.dense", "classifier"}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_found_in_other_families(family: str) -> None:
    last_block, after, head = FAMILIES[family]
    model = tiny(family)
    parts = read_structure(model)
    assert len(parts.blocks) == 2
    assert all(name.startswith(last_block) for name in parts.blocks[-1])
    assert {name.rpartition(".")[0] for name in parts.after} == after
    assert {name.rpartition(".")[0] for name in parts.head} == head
    everything = [*parts.before, *(name for block in parts.blocks for name in block), *parts.after, *parts.head]
    assert sorted(everything) == sorted(name for name, _ in model.named_parameters())


class Experts(nn.Module):
    """A block with more experts than there are blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))


def test_experts_are_no_blocks() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(Experts() for _ in range(3))
    assert [names[0] for names in read_structure(model).blocks] == [f"layers.{n}.experts.0.weight" for n in range(3)]


def test_a_model_without_head_or_blocks_is_said(home: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RecipeError, match=r"transfer\.strategy: is 'head', but Sequential has no head"):
        apply_strategy(model, tiny_recipe(home, transfer__strategy="head"))
    model.tlcore_new_parameters = frozenset({"0.bias"})
    with pytest.raises(RecipeError, match=r"transfer\.n: is 1, but Sequential has no list of like blocks"):
        apply_strategy(model, tiny_recipe(home, transfer__strategy="last_n", transfer__n=1))


def test_what_a_model_computes_for_itself_never_trains(tmp_path: Path) -> None:
    """Marian's sine positions: no file holds them, so an export would lose what they had learned."""
    made = text.MAKERS["marian/translation"](tmp_path)
    model, recipe = language_model(tmp_path, made, "translation", {})
    apply_strategy(model, recipe)
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert fixed == ["model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"]


TIED = {
    # the final norm is the source's: in an adapter it would be a module to save, which servers refuse
    "lora": (lambda name: ".lora_" in name),
    "dora": (lambda name: ".lora_" in name),
    "last_n": (lambda name: name.startswith(("model.layers.1.", "model.norm."))),
}


@pytest.mark.parametrize("strategy", TIED)
def test_a_language_model_whose_output_is_its_embedding_needs_no_head(tmp_path: Path, strategy: str) -> None:
    made = text.generation("LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True, **text.DECODER)(tmp_path)
    model, recipe = language_model(
        tmp_path, made, "text-generation", {"strategy": strategy, **({"n": 1} if strategy == "last_n" else {})}
    )
    assert not read_structure(model).head
    apply_strategy(model, recipe)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if TIED[strategy](name)}


@pytest.mark.parametrize("strategy", ["lora", "dora", "bitfit", "head"])
def test_an_output_layer_that_the_source_has_is_left_alone_by_what_trains_little(tmp_path: Path, strategy: str) -> None:
    """As large as the embedding, it would be most of what trains."""
    config = {**text.DECODER, "attention_bias": True}
    made = text.generation("LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=False, **config)(tmp_path)
    model, recipe = language_model(tmp_path, made, "text-generation", {"strategy": strategy})
    assert read_structure(model).head == ("lm_head.weight",)
    apply_strategy(model, recipe)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert ("lm_head.weight" in trained) == (strategy == "head")
    # beside updates only a head's own input trains whole, and there is no such head
    assert ("model.norm.weight" in trained) == (strategy in ("bitfit", "head"))


def test_the_blocks_of_a_model_are_kept_in_four_bits(home: Path) -> None:
    plain, _, _ = prepared(home, transfer__strategy="lora")
    model, task, _ = prepared(home, transfer__strategy="qlora")
    assert trained(model) == trained(plain)
    kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.uint8}
    inside = {name for name, _ in plain.named_parameters() if "encoder.layer" in name and ".base_layer.weight" in name}
    assert kept == inside
    assert len(kept) == 6 * BLOCKS
    for name in kept:
        codes, dense = model.get_parameter(name), plain.get_parameter(name)
        assert 2 * codes.numel() == dense.numel()
        assert is_carried(codes) and is_carried(model.get_parameter(name.replace("weight", "scales")))
    batch = task.largest_batch(2)
    loss = task.loss(model, batch)
    loss.backward()
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)


@pytest.mark.parametrize("fixed", [("wo",), ()])
def test_what_a_models_code_keeps_in_fp32_is_not_kept_in_four_bits(tmp_path: Path, fixed: tuple[str, ...]) -> None:
    made = text.MAKERS["t5/summarization"](tmp_path)
    model, recipe = language_model(tmp_path, made, "summarization", {"strategy": "qlora"})
    assert set(type(model)._keep_in_fp32_modules) == {"wo"}
    model._keep_in_fp32_modules = list(fixed)
    apply_strategy(model, recipe)
    kept = {name.split(".")[-3] for name, each in model.named_parameters() if each.dtype == torch.uint8}
    assert kept >= {"q", "k", "v", "o", "wi"}
    assert ("wo" in kept) == (not fixed)


def test_a_model_without_linear_layers_in_its_blocks_has_nothing_to_keep_in_four_bits(tmp_path: Path) -> None:
    made = text.MAKERS["gpt2/text-generation"](tmp_path)
    model, recipe = language_model(tmp_path, made, "text-generation", {"strategy": "qlora"})
    with pytest.raises(
        RecipeError, match=r"is 'qlora', but GPT2LMHeadModel has no list of like blocks with linear layers"
    ):
        apply_strategy(model, recipe)


def test_experts_are_not_adapted_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Three-dimensional weights of their own, no linear layers: most of the model, and nothing was said of it."""
    telling._TOLD.clear()
    made = text.MAKERS["gpt-oss/text-generation"](tmp_path)
    model, recipe = language_model(tmp_path, made, "text-generation", {"strategy": "lora"})
    experts = sum(each.numel() for name, each in model.named_parameters() if ".experts." in name)
    apply_strategy(model, recipe)
    assert not any(each.requires_grad for name, each in model.named_parameters() if ".experts." in name)
    [line] = [record.getMessage() for record in caplog.records if record.name == telling.__name__]
    found = re.search(
        r"transfer.strategy=lora: ([\d,]+) of the ([\d,]+) parameters in the blocks of GptOssForCausalLM", line
    )
    assert found is not None and "gate_up_proj" in line
    left, whole = (int(each.replace(",", "")) for each in found.groups())
    assert experts <= left < whole


def test_linear_layers_that_have_updates_need_no_word(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    telling._TOLD.clear()
    for strategy in ("lora", "qlora"):
        prepared(home, transfer__strategy=strategy)
    assert not caplog.records


def test_four_bits_are_refused_where_most_weights_would_stay_whole(tmp_path: Path) -> None:
    made = text.MAKERS["gpt-oss/text-generation"](tmp_path)
    model, recipe = language_model(tmp_path, made, "text-generation", {"strategy": "qlora"})
    said = (
        r"transfer\.strategy: is 'qlora', but [\d,]+ of the [\d,]+ parameters .* \(gate_up_proj, down_proj.*; use lora"
    )
    with pytest.raises(RecipeError, match=said):
        apply_strategy(model, recipe)


@pytest.mark.parametrize("strategy", ["lora", "bitfit"])
def test_the_bias_of_an_output_that_is_the_embedding_trains(tmp_path: Path, strategy: str) -> None:
    made = text.MAKERS["bert/masked-language-modeling"](tmp_path)
    model, recipe = language_model(tmp_path, made, "masked-language-modeling", {"strategy": strategy})
    apply_strategy(model, recipe)
    output = model.get_output_embeddings()
    assert output.bias.requires_grad
    assert not output.weight.requires_grad


def test_an_output_layer_may_have_an_update_of_its_own(tmp_path: Path) -> None:
    made = text.generation("LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=False, **text.DECODER)(tmp_path)
    model, recipe = language_model(
        tmp_path, made, "text-generation", {"strategy": "lora", "target_modules": ["lm_head"]}
    )
    apply_strategy(model, recipe)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lm_head" in name} == {
        "lm_head.lora_A.default.weight",
        "lm_head.lora_B.default.weight",
    }


def test_biases_of_a_language_model_train_without_a_head(tmp_path: Path) -> None:
    made = text.MAKERS["gpt2/text-generation"](tmp_path)
    model, recipe = language_model(tmp_path, made, "text-generation", {"strategy": "bitfit"})
    apply_strategy(model, recipe)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.endswith("bias") or n == "transformer.ln_f.weight"}


@pytest.mark.parametrize("strategy", ["head", "gradual"])
def test_without_a_head_what_begins_with_it_is_refused(tmp_path: Path, strategy: str) -> None:
    made = text.generation("LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True, **text.DECODER)(tmp_path)
    sections = {"model": made["model"], "data": made["data"], "storage": str(tmp_path / "store")}
    recipe = recipe_from_dict(
        {"name": "tied", "task": "text-generation", **sections, "transfer": {"strategy": strategy}}
    )
    with pytest.raises(RecipeError, match="LlamaForCausalLM has no head apart from its backbone; use full or lora"):
        apply_strategy(build_task(recipe).build_model(from_scratch=False), recipe)
