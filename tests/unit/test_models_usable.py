"""Sources whose files ask for what cannot be had: quantised weights, and code of another repository."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from served_hub import COMMIT, served_hub

from tlcore.errors import ModelError
from tlcore.models import build_pretrained, new_parameters, quiet, resolve_source

pytestmark = pytest.mark.unit

OWN = (
    "from transformers import PreTrainedConfig\n\n\nclass OwnConfig(PreTrainedConfig):\n    model_type = 'own-of-hub'\n"
)


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that these tests run is not kept with the user's."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    monkeypatch.setattr("sys.path", list(sys.path))


def with_config(directory: Path, **config: Any) -> str:
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_quantised_weights_are_refused_before_anything_is_built(tmp_path: Path, method: str) -> None:
    quantised = {"quantization_config": {"quant_method": method, "bits": 4}}
    with pytest.raises(ModelError, match=f"is quantised: quantization_config in its config.json says {method}"):
        resolve_source(with_config(tmp_path, model_type="llama", **quantised))
    with pytest.raises(ModelError, match=f"text_config.quantization_config in its config.json says {method}"):
        resolve_source(with_config(tmp_path, model_type="llava", text_config=quantised))
    assert resolve_source(with_config(tmp_path, model_type="llama", quantization_config=None)).directory == tmp_path


def test_mxfp4_weights_become_numbers_and_leave_no_trace(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    sizes = {"vocab_size": 20, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    config = transformers.GptOssConfig(**sizes, **heads, layer_types=["full_attention"], pad_token_id=0)
    with quiet():
        transformers.GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name, (outputs, inputs) in {"gate_up_proj": (64, 64), "down_proj": (64, 32)}.items():
        [key] = [key for key in stored if key.endswith(f".{name}")]
        del stored[key]
        # code 2 is 1.0, twice in a byte, and an exponent of 128 is a factor of 2
        stored[f"{key}_blocks"] = torch.full((2, outputs, inputs // 32, 16), 0x22, dtype=torch.uint8)
        stored[f"{key}_scales"] = torch.full((2, outputs, inputs // 32), 128, dtype=torch.uint8)
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((tmp_path / "config.json").read_text())
    source = resolve_source(with_config(tmp_path, **written, quantization_config={"quant_method": "mxfp4"}))
    config = source.load_config()
    model: Any = build_pretrained(transformers.AutoModelForCausalLM, source, config, 0)
    experts = model.model.layers[0].mlp.experts
    assert new_parameters(model) == set()
    assert experts.gate_up_proj.dtype == torch.bfloat16 and bool((experts.gate_up_proj == 2).all())
    assert bool((experts.down_proj == 2).all())
    assert not hasattr(model.config, "quantization_config") and not getattr(model, "is_quantized", False)
    config.save_pretrained(tmp_path / "export")
    assert "quantization_config" not in (tmp_path / "export" / "config.json").read_text()


def test_code_beside_the_weights_needs_no_revision(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    place = with_config(tmp_path, model_type="own-of-hub", auto_map={"AutoConfig": "own.OwnConfig"})
    assert type(resolve_source(place, trust_remote_code=True).load_config()).__name__ == "OwnConfig"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("named", ["owner/other--own.Own", [None, "owner/other--own.Own"]])
def test_code_of_another_repository_is_refused(tmp_path: Path, file: str, named: Any) -> None:
    place = with_config(tmp_path, model_type="bert")
    (tmp_path / file).write_text(json.dumps({"model_type": "bert", "auto_map": {"AutoTokenizer": named}}))
    assert resolve_source(place).load_config().model_type == "bert", "without trust no code runs"
    with pytest.raises(
        ModelError, match=f"auto_map in its {file} names 'owner/other--own.Own', code of another"
    ) as caught:
        resolve_source(place, trust_remote_code=True)
    assert "write 'own.Own' there" in str(caught.value.hint)


def test_a_hub_model_that_names_itself_runs_the_code_of_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "someone/names-itself"
    config = {
        "model_type": "own-of-hub",
        "auto_map": {"AutoConfig": f"{source}--own.OwnConfig", "AutoModel": f"{source}--own.Own"},
    }
    files = {"config.json": json.dumps(config).encode(), "own.py": OWN.encode()}
    with served_hub(files, tmp_path / "cache", monkeypatch) as asked:
        found = resolve_source(source, revision="v1", trust_remote_code=True)
        before = len(asked)
        read = found.load_config()
        assert type(read).__name__ == "OwnConfig" and read.auto_map["AutoModel"] == "own.Own"
        assert not [path for path in asked[before:] if COMMIT not in path], "whatever is on its main branch"
        with pytest.raises(ModelError, match="code of another repository"):
            resolve_source("someone/else", revision="v1", trust_remote_code=True)
