"""A .gguf file as a source: the same answers as the model it was written from, made once, and what cannot be used is said."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tlcore.errors import ModelError
from tlcore.models import build_pretrained, new_parameters, resolve_source

pytestmark = pytest.mark.unit

HEADS, KEY_HEADS = 4, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "c", "Ġ", "ab", "Ġc"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture(autouse=True)
def own_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a projection in llama.cpp's order of rotary pairs."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tensors_of(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    for layer in range(model.config.num_hidden_layers):
        for name, short in NAMES.items():
            weight = state[f"model.layers.{layer}.{name}.weight"]
            heads = {"attn_q": HEADS, "attn_k": KEY_HEADS}.get(short)
            found[f"blk.{layer}.{short}.weight"] = interleaved(weight, heads) if heads else weight
    return found


def write_gguf(path: Path, model: LlamaForCausalLM, without: str = "") -> Path:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["a b", "Ġ c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in tensors_of(model).items():
        if name != without:
            writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_model_answers_as_the_one_it_was_written_from(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    wanted = small_llama()
    write_gguf(tmp_path / "source" / "small.gguf", wanted)
    found = resolve_source(str(tmp_path / "source"))
    model: Any = build_pretrained(AutoModelForCausalLM, found, found.load_config(), 0).eval()
    ids = torch.randint(0, len(TOKENS), (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, wanted(input_ids=ids).logits)
    assert new_parameters(model) == frozenset()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    tokenizer = found.load_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab c")["input_ids"]) == ["ab", "Ġc"]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|im_end|>", "<|im_end|>")
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<|im_start|>a<|im_end|>"
    )


def test_it_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    write_gguf(tmp_path / "source" / "small.gguf", small_llama())
    first = resolve_source(str(tmp_path / "source"))
    monkeypatch.setattr("tlcore.models.gguf_source._convert", lambda *_: pytest.fail("converted again"))
    again = resolve_source(str(tmp_path / "source"))
    assert (again.directory, again.digest) == (first.directory, first.digest)


def refused(directory: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        resolve_source(str(directory))
    return caught.value


def test_what_cannot_be_used_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "small.gguf", small_llama(), without="blk.1.ffn_up.weight")
    assert "has no model.layers.1.mlp.up_proj.weight" in refused(tmp_path).message
    (tmp_path / "small.gguf").write_bytes(b"GGUF and no more")
    assert "transformers cannot read" in refused(tmp_path).message
    (tmp_path / "other.gguf").write_bytes(b"")
    assert "has 2 .gguf files: other.gguf, small.gguf" in refused(tmp_path).message
    (tmp_path / "other.gguf").unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "tlcore[gguf]" in (refused(tmp_path).hint or "")


def test_a_directory_with_a_configuration_is_an_ordinary_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "small.gguf").write_bytes(b"")
    assert resolve_source(str(tmp_path)).directory == tmp_path.resolve()
