"""Exports made shard by shard: what plain transformers and peft load from them is what was stored."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_text_model import save_tiny_bert, tiny_recipe
from trained_text_model import Trained, load

from tests.stored_model import store_model
from tlcore.commands.models import size_bytes
from tlcore.errors import CheckpointIncompatible, RequestError
from tlcore.models import quiet
from tlcore.models.four_bit import unpack
from tlcore.models.stored import StoredWeights, transposed_layers, weights_of
from tlcore.storage import open_store
from tlcore.tasks import build_task
from tlcore.train.adapter import export_adapter
from tlcore.train.export import export_checkpoint, write_weights
from tlcore.train.places import open_place
from tlcore.transfer import apply_strategy, read_structure
from tlcore.transfer.lora import keep_blocks_in_four_bits

pytestmark = pytest.mark.unit

SHARD = 4000


def configurations() -> dict[str, Any]:
    """Tied weights, transposed layers, stacked experts, renamed weights, buffers: each in a tiny network of its family."""
    import transformers as hf

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return {
        "gpt2, tied": hf.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16),
        "llama, tied": hf.LlamaConfig(vocab_size=20, tie_word_embeddings=True, **small),
        "llama, untied": hf.LlamaConfig(vocab_size=20, tie_word_embeddings=False, **small),
        "mixtral, experts": hf.MixtralConfig(vocab_size=20, num_key_value_heads=2, num_local_experts=3, **small),
        "qwen2_moe, experts": hf.Qwen2MoeConfig(
            vocab_size=20, num_key_value_heads=2, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=8,
            shared_expert_intermediate_size=8, decoder_sparse_step=1, **small
        ),
    }  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    return tiny_recipe(tmp_path)


def make(config: Any, meta: bool = False) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    with quiet(), torch.device("meta" if meta else "cpu"):
        return AutoModelForCausalLM.from_config(config).eval()


def tensors_in(directory: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    return found


@pytest.mark.parametrize("family", configurations())
def test_shards_hold_what_transformers_itself_saves(recipe: Any, tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM

    config = configurations()[family]
    model = make(config)
    store = open_store(f"file://{tmp_path}/run")
    store_model(store, model, recipe)
    from tlcore.checkpoint import read_manifest

    skeleton = make(config, meta=True)
    stored = StoredWeights(store, read_manifest(store, "t000", 5), transposed_layers(skeleton))
    place = open_place(str(tmp_path / "ours"))
    write_weights(place, skeleton, stored, torch.float32, SHARD)
    place.write("config.json", json.dumps(config.to_dict() | {"dtype": "float32"}).encode())
    place.commit()
    with quiet():
        model.save_pretrained(tmp_path / "theirs")
        loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    ours, theirs = tensors_in(tmp_path / "ours"), tensors_in(tmp_path / "theirs")
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(tokens).logits, model(tokens).logits)
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 2
    # Stacked experts are one tensor here and several there, which stay together.
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert all(path.stat().st_size < max(SHARD, largest) + 4096 for path in files)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in ours.values())
    assert set(index["weight_map"]) == set(ours)


def test_an_export_is_a_whole_model_directory(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    trained = Trained(tmp_path)
    seen: list[tuple[int, int]] = []
    told = export_checkpoint(
        trained.url, str(tmp_path / "out"), max_shard_bytes=SHARD, on_shard=lambda *done: seen.append(done)
    )
    assert told == str(tmp_path / "out")
    model = load(tmp_path / "out")
    assert torch.equal(trained.logits(model), trained.logits(trained.model))
    assert model.config.id2label == {0: "neg", 1: "pos"}
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("good film")["input_ids"] == [2, 4, 6, 3]
    assert seen == [(number, len(seen)) for number in range(1, len(seen) + 1)] and len(seen) > 2
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("source", torch.bfloat16)],
)
def test_an_export_loads_in_the_format_asked_for(tmp_path: Path, dtype: Any, expected: torch.dtype) -> None:
    save_tiny_bert(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    trained = Trained(tmp_path)
    export_checkpoint(trained.url, str(tmp_path / "out"), dtype=dtype)
    model = load(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    wanted = dict(trained.model.named_parameters())
    assert all(torch.equal(value, wanted[name].to(expected)) for name, value in model.named_parameters())
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]


def test_updates_are_merged_as_peft_merges_them(tmp_path: Path) -> None:
    trained = Trained(tmp_path, transfer__strategy="lora", transfer__rank=3, transfer__alpha=5.0)
    export_checkpoint(trained.url, str(tmp_path / "out"))
    model = load(tmp_path / "out")
    assert torch.allclose(trained.logits(model), trained.logits(trained.model), atol=1e-5)
    merged = dict(model.named_parameters())
    for name, module in trained.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            base = module.base_layer.weight
            assert torch.equal(merged[f"{name}.weight"], base + module.get_delta_weight("default"))
            assert not torch.equal(merged[f"{name}.weight"], base)


def test_updates_are_merged_into_what_four_bits_stand_for(tmp_path: Path) -> None:
    trained = Trained(tmp_path, transfer__strategy="qlora", transfer__rank=3, transfer__alpha=5.0)
    export_checkpoint(trained.url, str(tmp_path / "out"))
    model = load(tmp_path / "out")
    assert torch.allclose(trained.logits(model), trained.logits(trained.model), atol=1e-5)
    merged, plain = dict(model.named_parameters()), load(tmp_path / "model")
    assert {parameter.dtype for parameter in merged.values()} == {torch.float32}
    assert [parameter.shape for parameter in merged.values()] == [parameter.shape for parameter in plain.parameters()]
    layers = {name: module for name, module in trained.model.named_modules() if hasattr(module, "get_delta_weight")}
    assert len(layers) == 18
    for name, layer in layers.items():
        base = unpack(layer.base_layer.weight, layer.base_layer.scales, torch.float32)
        assert torch.equal(merged[f"{name}.weight"], base + layer.get_delta_weight("default"))


def test_a_checkpoint_in_four_bits_is_a_source(tmp_path: Path) -> None:
    trained = Trained(tmp_path, transfer__strategy="qlora", transfer__rank=3)
    (tmp_path / "next").mkdir()
    recipe = tiny_recipe(tmp_path / "next", model__source=trained.url)
    model = build_task(recipe, facts={"labels": ["neg", "pos"]}).build_model(from_scratch=False)
    assert torch.allclose(trained.logits(model), trained.logits(trained.model), atol=1e-5)


def test_lengths_and_directions_are_merged_as_peft_merges_them(tmp_path: Path) -> None:
    trained = Trained(tmp_path, transfer__strategy="dora", transfer__rank=3, transfer__alpha=5.0)
    assert len([name for name, _ in trained.model.named_parameters() if "magnitude" in name]) == 18
    export_checkpoint(trained.url, str(tmp_path / "out"))
    model = load(tmp_path / "out")
    assert torch.allclose(trained.logits(model), trained.logits(trained.model), atol=1e-5)
    merged = dict(model.named_parameters())
    layers = {name: module for name, module in trained.model.named_modules() if hasattr(module, "get_delta_weight")}
    for name, layer in layers.items():
        before = layer.base_layer.weight.detach().clone()
        layer.merge(safe_merge=True)
        torch.testing.assert_close(merged[f"{name}.weight"], layer.base_layer.weight, rtol=1e-6, atol=1e-7)
        assert not torch.allclose(merged[f"{name}.weight"], before)


@pytest.mark.parametrize("strategy", ["lora", "dora"])
def test_updates_of_transposed_layers_are_merged_as_peft_merges_them(tmp_path: Path, strategy: str) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    from tlcore.checkpoint import read_manifest

    recipe = tiny_recipe(tmp_path, transfer__strategy=strategy, transfer__rank=2)
    model: Any = GPT2ForSequenceClassification(
        GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    )
    plain = [name for name, _ in model.named_parameters()]
    apply_strategy(model, recipe)
    torch.nn.init.normal_(model.transformer.h[0].attn.c_proj.lora_B["default"].weight)
    store = open_store(f"file://{tmp_path}/run")
    store_model(store, model, recipe)
    fresh = GPT2ForSequenceClassification(model.config)
    stored = StoredWeights(store, read_manifest(store, "t000", 5), transposed_layers(fresh))
    assert sorted(stored.names) == sorted(plain)
    wanted = weights_of(fresh)
    stored.read_into(wanted)
    layer = model.transformer.h[0].attn.c_proj
    assert layer.base_layer.weight.shape == (16, 16), "a square weight does not show which way round it is"
    layer.merge(safe_merge=True)
    torch.testing.assert_close(fresh.transformer.h[0].attn.c_proj.weight, layer.base_layer.weight, rtol=1e-6, atol=1e-7)


def test_an_update_that_no_weight_would_take_up_is_said_and_not_lost(tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    from tlcore.checkpoint import read_manifest

    recipe = tiny_recipe(tmp_path, transfer__strategy="lora", transfer__rank=2)
    store = open_store(f"file://{tmp_path}/run")

    def stored(family: str, layer: str) -> tuple[StoredWeights, dict[str, torch.Tensor]]:
        config = configurations()[family]
        model = make(config)
        with warnings.catch_warnings(action="ignore"):
            inject_adapter_in_model(LoraConfig(r=2, target_modules=[layer]), model)
        store_model(store, model, recipe)
        return StoredWeights(store, read_manifest(store, "t000", 5)), weights_of(make(config))

    tied, wanted = stored("llama, tied", "lm_head")
    for ask in (tied.check, tied.read_into):
        with pytest.raises(
            CheckpointIncompatible, match=r"lm_head\.weight has an update .* is tied to model\.embed_tokens"
        ):
            ask(wanted)
    assert [name for name, _ in tied.read_updates()] == ["lm_head"], "the adapter alone can be had"
    untied, wanted = stored("llama, untied", "q_proj")
    untied.check(wanted)
    del wanted["model.layers.1.self_attn.q_proj.weight"]
    untied.read_into(wanted)
    with pytest.raises(CheckpointIncompatible, match=r"1\.self_attn\.q_proj\.weight has an update .* not in the model"):
        untied.check(wanted)


@pytest.mark.parametrize("strategy", ["lora", "dora"])
def test_an_update_of_the_output_layer_is_merged(tmp_path: Path, strategy: str) -> None:
    from tlcore.checkpoint import read_manifest

    transfer = {"strategy": strategy, "rank": 2, "target_modules": ["lm_head"]}
    recipe = tiny_recipe(tmp_path, **{f"transfer__{name}": value for name, value in transfer.items()})
    config = configurations()["llama, untied"]
    model = make(config)
    apply_strategy(model, recipe)
    torch.nn.init.normal_(model.lm_head.lora_B["default"].weight)
    store = open_store(f"file://{tmp_path}/run")
    store_model(store, model, recipe)
    fresh = make(config)
    wanted = weights_of(fresh)
    StoredWeights(store, read_manifest(store, "t000", 5), transposed_layers(fresh)).read_into(wanted)
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        before, after = make(config)(tokens).logits, fresh(tokens).logits
        torch.testing.assert_close(after, model.eval()(tokens).logits, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after, before, atol=1e-3)


@pytest.mark.parametrize("strategy", ["lora", "dora"])
def test_an_adapter_alone_loads_with_peft_on_its_base(tmp_path: Path, strategy: str) -> None:
    from peft import AutoPeftModelForSequenceClassification, PeftModel
    from transformers import AutoModelForSequenceClassification

    trained = Trained(tmp_path, transfer__strategy=strategy, transfer__rank=3, transfer__dropout=0.1)
    export_adapter(trained.url, str(tmp_path / "adapter"))
    with quiet():
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=2)
        model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
        alone = AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "adapter"), num_labels=2)
    expected = trained.logits(trained.model)
    assert torch.allclose(trained.logits(model), expected, atol=1e-6)
    assert torch.allclose(trained.logits(alone), expected, atol=1e-6)
    whole = sum(parameter.nbytes for parameter in trained.model.parameters())
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < whole / 2


def test_an_adapter_of_a_base_in_four_bits_loads_with_peft_on_that(tmp_path: Path) -> None:
    from peft import PeftModel

    trained = Trained(tmp_path, transfer__strategy="qlora", transfer__rank=3)
    export_adapter(trained.url, str(tmp_path / "adapter"))
    base = load(tmp_path / "model")
    assert base.num_labels == 2
    keep_blocks_in_four_bits(base, read_structure(base))
    with quiet():
        model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert torch.allclose(trained.logits(model), trained.logits(trained.model), atol=1e-6)


def test_a_run_without_an_adapter_has_none_to_export(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"has no adapter: it was trained with transfer\.strategy full"):
        export_adapter(Trained(tmp_path).url, str(tmp_path / "adapter"))


def test_a_source_that_changed_is_said_by_name_and_shapes(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))
    with pytest.raises(
        CheckpointIncompatible, match=r"intermediate.dense.weight has shape \[8, 16\] .* of shape \[32, 16\]"
    ):
        export_checkpoint(trained.url, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "size"), [("50MB", 50_000_000), ("1.5 GB", 1_500_000_000), ("2GiB", 2 << 30), ("512k", 512_000), ("7", 7)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GB", "2 elephants", "GB"])
def test_no_size_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is no size"):
        size_bytes(text)
