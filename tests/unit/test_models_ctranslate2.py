"""Whisper in CTranslate2's format: written here as its specification says, converted, and equal to what it was."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tlcore.errors import ModelError
from tlcore.models import ctranslate2

pytestmark = pytest.mark.unit

SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>")


def whisper() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(1)
    config = WhisperConfig(
        vocab_size=len(SPECIAL) + 1,
        num_mel_bins=4,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        d_model=64,
        max_source_positions=10,
        max_target_positions=12,
        pad_token_id=1,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=2,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config).eval()


def as_ctranslate2(model: Any) -> dict[str, np.ndarray]:
    """The weights by CTranslate2's names: projections that read the same input lie in one matrix."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = {
        "decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"],
        "decoder/projection/weight": state["proj_out.weight"],
    }

    def both(target: str, names: list[str]) -> None:
        weights = [state[f"{name}.weight"] for name in names]
        biases = [
            state.get(f"{name}.bias", np.zeros(len(w), np.float32)) for name, w in zip(names, weights, strict=True)
        ]
        found[f"{target}/weight"], found[f"{target}/bias"] = np.concatenate(weights), np.concatenate(biases)

    def norm(target: str, name: str) -> None:
        found[f"{target}/gamma"], found[f"{target}/beta"] = state[f"{name}.weight"], state[f"{name}.bias"]

    for side, layers in (("encoder", 1), ("decoder", 2)):
        found[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for layer in range(layers):
            to, of = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            both(f"{to}/self_attention/linear_0", [f"{of}.self_attn.{letter}_proj" for letter in "qkv"])
            both(f"{to}/self_attention/linear_1", [f"{of}.self_attn.out_proj"])
            norm(f"{to}/self_attention/layer_norm", f"{of}.self_attn_layer_norm")
            if side == "decoder":
                both(f"{to}/attention/linear_0", [f"{of}.encoder_attn.q_proj"])
                both(f"{to}/attention/linear_1", [f"{of}.encoder_attn.{letter}_proj" for letter in "kv"])
                both(f"{to}/attention/linear_2", [f"{of}.encoder_attn.out_proj"])
                norm(f"{to}/attention/layer_norm", f"{of}.encoder_attn_layer_norm")
            both(f"{to}/ffn/linear_0", [f"{of}.fc1"])
            both(f"{to}/ffn/linear_1", [f"{of}.fc2"])
            norm(f"{to}/ffn/layer_norm", f"{of}.final_layer_norm")
    for convolution in ("conv1", "conv2"):
        both(f"encoder/{convolution}", [f"model.encoder.{convolution}"])
    return found


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def write(
    path: Path, variables: dict[str, np.ndarray], version: int = 6, aliases: tuple[tuple[str, str], ...] = ()
) -> None:
    kinds = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.float16): 4}
    parts = [struct.pack("<I", version), text("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, array in variables.items():
        parts += [text(name), struct.pack("<B", array.ndim), struct.pack(f"<{array.ndim}I", *array.shape)]
        parts += [struct.pack("<BI", kinds[array.dtype], array.nbytes), array.tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [text(alias) + text(target) for alias, target in aliases]
    path.write_bytes(b"".join(parts))


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from transformers import WhisperTokenizer

    monkeypatch.setattr(ctranslate2, "_ENGLISH_TOKENS", len(SPECIAL) + 1)
    place = tmp_path / "source"
    place.mkdir()
    tokenizer = WhisperTokenizer(vocab={sign: number for number, sign in enumerate(("a", *SPECIAL))}, merges=[])
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIAL[1:])})
    tokenizer.save_pretrained(place)
    settings = {"suppress_ids": [0], "suppress_ids_begin": [1], "alignment_heads": [[1, 0]]}
    (place / "config.json").write_text(json.dumps(settings))
    return place


def test_the_converted_model_is_what_it_was(source: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor, AutoTokenizer, WhisperForConditionalGeneration

    model = whisper()
    variables = as_ctranslate2(model)
    projection = variables.pop("decoder/projection/weight")
    assert np.array_equal(projection, variables["decoder/embeddings/weight"])
    aliases = (("decoder/projection/weight", "decoder/embeddings/weight"),)
    write(source / "model.bin", variables, aliases=aliases)
    ctranslate2.convert_whisper(source, tmp_path / "made")
    made = WhisperForConditionalGeneration.from_pretrained(tmp_path / "made").eval()
    features, ids = torch.randn(1, 4, 20), torch.tensor([[2, 0, 1]])
    with torch.no_grad():
        assert torch.equal(
            made(input_features=features, decoder_input_ids=ids).logits,
            model(input_features=features, decoder_input_ids=ids).logits,
        )
    assert made.generation_config.suppress_tokens == [0]
    assert made.generation_config.no_timestamps_token_id == 4
    assert AutoTokenizer.from_pretrained(tmp_path / "made").prefix_tokens == [2, 4]
    assert AutoProcessor.from_pretrained(tmp_path / "made").feature_extractor.feature_size == 4


def test_what_cannot_be_converted_is_said(source: Path, tmp_path: Path) -> None:
    variables = as_ctranslate2(whisper())
    faults: list[tuple[dict[str, np.ndarray], int, str]] = [
        (variables, 5, "is WhisperSpec in version 5"),
        ({**variables, "encoder/conv1/weight": np.zeros((64, 4, 3), np.int8)}, 6, "encoder/conv1/weight is quantised"),
        ({name: each for name, each in variables.items() if "conv2" not in name}, 6, "have no encoder/conv2/weight"),
    ]
    for given, version, message in faults:
        write(source / "model.bin", given, version)
        with pytest.raises(ModelError, match=message):
            ctranslate2.convert_whisper(source, tmp_path / "made")
    (source / "model.bin").write_bytes(b"\6\0\0\0")
    with pytest.raises(ModelError, match="cannot be read as a CTranslate2 model"):
        ctranslate2.convert_whisper(source, tmp_path / "made")
    with pytest.raises(ModelError, match="No such file"):
        ctranslate2.read_variables(tmp_path / "none.bin")


def test_models_of_several_languages_are_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctranslate2, "_ENGLISH_TOKENS", 51864)
    write(source / "model.bin", as_ctranslate2(whisper()))
    with pytest.raises(ModelError, match="only English ones"):
        ctranslate2.convert_whisper(source, tmp_path / "made")
