"""What a source's weights lack: a new head is right, a new block is ruin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_text_model import save_tiny_bert

from tlcore.errors import ModelError
from tlcore.models import build_pretrained, new_backbone_line, new_parameters, quiet, resolve_source

pytestmark = pytest.mark.unit

SIZES = {"vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    """A family whose language model has no backbone attribute."""
    torch.manual_seed(1)
    with quiet():
        config = transformers.T5Config(**SIZES, decoder_start_token_id=0)
        transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    return tmp_path


def built(directory: Path, kind: str, **changes: Any) -> torch.nn.Module:
    source = resolve_source(str(directory))
    return build_pretrained(getattr(transformers, kind), source, source.load_config(**changes), 0)


def rename(directory: Path, name_of: Callable[[str], str | None]) -> None:
    """Give the stored tensors other names, or none."""
    file = directory / "model.safetensors"
    named = {name_of(name): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in named.items() if name}, file, metadata={"format": "pt"})


def reconfigure(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_model_without_a_backbone_attribute_is_taken_whole(t5: Path) -> None:
    model = built(t5, "AutoModelForSeq2SeqLM")
    assert new_parameters(model) == set() and new_backbone_line(model, "it") is None


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_names_with_a_wrapper_before_them_are_refused_with_what_to_do(
    tmp_path: Path, family: str, wrapper: str, request: Any
) -> None:
    directory, kind = save_tiny_bert(tmp_path / "bert"), "AutoModelForSequenceClassification"
    if family == "t5":
        directory, kind = request.getfixturevalue("t5"), "AutoModelForSeq2SeqLM"
    rename(directory, lambda name: wrapper + name)
    with pytest.raises(
        ModelError, match=r"its weights lack (\d+) of \1 backbone parameters, such as .* more\n"
    ) as caught:
        built(directory, kind)
    assert f"begins with '{wrapper}'" in str(caught.value.hint)


def test_blocks_that_no_file_has_are_refused(t5: Path, tmp_path: Path) -> None:
    reconfigure(t5, num_layers=3)
    with pytest.raises(ModelError, match=r"lack 8 of 5\d backbone parameters, such as encoder\.block\.2\."):
        built(t5, "AutoModelForSeq2SeqLM")
    bert = save_tiny_bert(tmp_path / "bert")
    rename(bert, lambda name: None if name.endswith("layer.1.attention.self.query.bias") else name)
    with pytest.raises(ModelError, match=r"lack 1 of 55 backbone parameters, such as bert\.encoder\.layer\.1"):
        built(bert, "AutoModelForSequenceClassification")


def test_another_vocabulary_than_the_weights_is_refused(t5: Path) -> None:
    reconfigure(t5, vocab_size=40)
    with pytest.raises(ModelError, match=r"shared\.weight has another shape in the weights than config\.json says"):
        built(t5, "AutoModelForSeq2SeqLM")


def test_a_task_s_own_parameters_are_new_whatever_the_backbone_is(t5: Path) -> None:
    model = built(t5, "AutoModelForQuestionAnswering")
    assert new_parameters(model) == {"qa_outputs.weight", "qa_outputs.bias"}
    for labels in (3, 5):
        sorted_by = built(t5, "AutoModelForSequenceClassification", num_labels=labels)
        assert all(name.startswith("classification_head.") for name in new_parameters(sorted_by))
        assert new_backbone_line(sorted_by, "it") is None


def test_what_a_backbone_lacks_outside_its_blocks_is_said_and_a_pooler_is_not(tmp_path: Path) -> None:
    bert = save_tiny_bert(tmp_path)
    rename(bert, lambda name: None if name.startswith("pooler.") else name)
    assert new_backbone_line(built(bert, "AutoModelForSequenceClassification"), "it") is None
    rename(bert, lambda name: None if name.startswith("embeddings.LayerNorm.") else name)
    model = built(bert, "AutoModelForSequenceClassification")
    said = "it has no bert.embeddings.LayerNorm.bias, bert.embeddings.LayerNorm.weight of this shape: drawn anew from train.seed"
    assert new_backbone_line(model, "it") == said


def test_a_decoder_s_head_of_other_classes_in_a_list_is_no_block(tmp_path: Path) -> None:
    """YOLOS' box head is a list of layers outside the backbone."""
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[32, 32], patch_size=16,
        num_detection_tokens=4, num_labels=5,
    )  # fmt: skip
    with quiet():
        transformers.YolosForObjectDetection(config).save_pretrained(tmp_path)
    model = built(tmp_path, "AutoModelForObjectDetection", num_labels=2)
    assert new_parameters(model) == {"class_labels_classifier.layers.2.weight", "class_labels_classifier.layers.2.bias"}
