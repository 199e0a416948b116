"""Models made of a source: which weights are its own, which are new, and what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text_model import save_tiny_bert
from transformers import AutoModelForSequenceClassification

from tests.families import images
from tlcore.errors import ModelError
from tlcore.models import build_pretrained, build_scratch, is_carried, new_parameters, resolve_source

pytestmark = pytest.mark.unit

CLASSIFIER = {"classifier.weight", "classifier.bias"}


def make(directory: Path, build: Any = build_pretrained, seed: int = 1, labels: int = 3) -> torch.nn.Module:
    source = resolve_source(str(directory))
    return build(AutoModelForSequenceClassification, source, source.load_config(num_labels=labels), seed)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


def test_the_backbone_is_the_sources_and_the_head_is_new(backbone: Path) -> None:
    from safetensors.torch import load_file

    model = make(backbone)
    stored = load_file(backbone / "model.safetensors")
    mine = model.state_dict()
    assert all(torch.equal(mine[f"bert.{name}"], tensor) for name, tensor in stored.items())
    assert new_parameters(model) == CLASSIFIER
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "sdpa"


def restored_in(backbone: Path, directory: Path, formats: list[torch.dtype]) -> Path:
    """A copy of the backbone whose tensors are in these formats in turn."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(backbone, directory)
    stored = load_file(backbone / "model.safetensors")
    cast = {name: tensor.to(formats[at % len(formats)]) for at, (name, tensor) in enumerate(sorted(stored.items()))}
    save_file(cast, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize(
    ("formats", "built"),
    [
        ([torch.bfloat16], torch.bfloat16),
        ([torch.float16], torch.float16),
        ([torch.float32], torch.float32),
        ([torch.float64], torch.float32),
    ],
)
def test_weights_stay_in_the_one_format_that_they_are_stored_in(backbone, tmp_path, formats, built):
    model = make(restored_in(backbone, tmp_path / "copy", formats))
    assert {parameter.dtype for parameter in model.parameters()} == {built}


@pytest.mark.parametrize("most", [torch.float16, torch.bfloat16])
def test_a_few_tensors_in_fp32_cast_neither_the_others_nor_themselves(backbone, tmp_path, most):
    """A table left from an older transformers (`inv_freq`) had every rank copy a model of 16 bits into fp32 of its own."""
    from safetensors.torch import load_file, save_file

    exact = "embeddings.LayerNorm.weight"
    directory = restored_in(backbone, tmp_path / "copy", [most])
    stored = load_file(directory / "model.safetensors")
    stored[exact] = torch.linspace(0.9, 1.1, stored[exact].numel())
    stored["encoder.layer.0.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    model = make(directory)
    mine = model.state_dict()
    assert all(
        torch.equal(mine[f"bert.{name}"], stored[name])
        for name in set(stored) & set(load_file(backbone / "model.safetensors"))
    )
    assert {name for name, each in model.named_parameters() if each.dtype == torch.float32} == {f"bert.{exact}"}
    assert is_carried(model.get_parameter(f"bert.{exact}"))


def test_what_most_elements_are_stored_in_is_the_format(backbone: Path, tmp_path: Path) -> None:
    """Nothing is rounded, and nothing in 16 bits is cast but where fp32 has the most."""
    from safetensors.torch import load_file

    directory = restored_in(backbone, tmp_path / "copy", [torch.bfloat16, torch.float32])
    stored, mine = load_file(directory / "model.safetensors"), make(directory).state_dict()
    assert all(torch.equal(mine[f"bert.{name}"].float(), tensor.float()) for name, tensor in stored.items())


def test_only_what_the_source_has_counts_as_carried(backbone: Path) -> None:
    assert {name for name, each in make(backbone).named_parameters() if not is_carried(each)} == CLASSIFIER
    assert not any(is_carried(each) for each in make(backbone, build_scratch).parameters())


def test_new_weights_follow_the_seed_and_nothing_else(backbone: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = state(make(backbone, seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert differing(first, state(make(backbone, seed=1))) == set()
    assert differing(first, state(make(backbone, seed=2))) == {"classifier.weight"}


def test_scratch_draws_every_weight_from_the_seed(backbone: Path) -> None:
    first = state(make(backbone, build_scratch, seed=1))
    assert differing(first, state(make(backbone, build_scratch, seed=1))) == set()
    assert "bert.encoder.layer.0.attention.self.query.weight" in differing(
        first, state(make(backbone, build_scratch, 2))
    )
    assert new_parameters(make(backbone, build_scratch)) == set(first)


def test_scratch_needs_no_weights(backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((backbone / "config.json").read_bytes())
    assert make(tmp_path, build_scratch).training
    with pytest.raises(ModelError, match="safetensors"):
        make(tmp_path)


def test_training_one_model_leaves_the_next_and_the_file_alone(backbone: Path) -> None:
    before = (backbone / "model.safetensors").read_bytes()
    first = make(backbone)
    untouched = state(first)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    assert differing(untouched, state(make(backbone))) == set()
    assert (backbone / "model.safetensors").read_bytes() == before


def test_a_head_of_other_classes_is_new(tmp_path: Path) -> None:
    save_tiny_bert(tmp_path, classes=5)
    assert new_parameters(make(tmp_path, labels=5)) == set()
    assert new_parameters(make(tmp_path, labels=3)) == CLASSIFIER


def test_weights_of_another_shape_or_network_are_refused(backbone: Path, tmp_path: Path) -> None:
    save_tiny_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(ModelError, match="has another shape in the weights"):
        make(tmp_path)
    shape = {"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 3, "vocab_size": 14, "max_position_embeddings": 16}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "distilbert", **shape}))
    with pytest.raises(ModelError, match="its weights lack"):
        make(tmp_path)


def test_damaged_weights_are_said(tmp_path: Path) -> None:
    save_tiny_bert(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(ModelError, match="cannot build"):
        make(tmp_path)


@pytest.mark.parametrize("kind", ["mobilenet_v2", "efficientnet"])
def test_statistics_of_batch_norms_are_of_more_than_the_last_batch(tmp_path: Path, kind: str) -> None:
    """transformers hands TensorFlow's momentum to torch, which means the opposite by it."""
    from transformers import AutoModelForImageClassification, EfficientNetConfig

    tiny = EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320, image_size=64)
    config = images.mobilenet_v2()[0] if kind == "mobilenet_v2" else tiny
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    source = resolve_source(str(tmp_path))
    for build in (build_pretrained, build_scratch):
        model: Any = build(AutoModelForImageClassification, source, source.load_config(), 1)
        norms = [each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d)]
        assert norms and {norm.momentum for norm in norms} == {0.1}
    norm, seen = norms[0], []
    norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].mean(dim=(0, 2, 3))))
    expected = norm.running_mean.clone()
    with torch.no_grad():
        for batch in range(4):
            model(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(batch)) + batch)
    for mean in seen:
        expected = 0.9 * expected + 0.1 * mean
    torch.testing.assert_close(norm.running_mean, expected)
