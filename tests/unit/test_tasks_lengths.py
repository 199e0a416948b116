"""How long a text a model takes: what its positions allow, whatever its tokenizer names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_text_model import save_tokenizer

from tlcore.errors import RecipeError
from tlcore.models import resolve_source
from tlcore.tasks.tokens import TextModel

pytestmark = pytest.mark.unit

NAMED = 16
"""What the tokenizer of these tests names."""


def longest(directory: Path, config: Any, wanted: int) -> int:
    config.save_pretrained(directory)
    save_tokenizer(directory)
    return TextModel(resolve_source(str(directory)), wanted).max_length


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (transformers.T5Config(), "has no limit of its own"),
        (transformers.XLNetConfig(), "has no limit of its own"),
        (transformers.BertConfig(max_position_embeddings=40), "has 40 positions"),
    ],
)
def test_the_model_decides_and_the_tokenizer_s_number_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, config: Any, says: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert longest(tmp_path, config, 40) == 40
        assert longest(tmp_path, config, NAMED) == NAMED
    [said] = caplog.messages
    assert (
        said
        == f"data.max_length=40: the tokenizer of model {str(tmp_path)!r} names {NAMED} tokens, but the model {says}"
    )


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (transformers.BertConfig(max_position_embeddings=24), 24),
        (transformers.RobertaConfig(max_position_embeddings=18), 16),
        (transformers.RobertaConfig(max_position_embeddings=26), 24),
        (transformers.BertConfig(max_position_embeddings=8), 8),
    ],
)
def test_more_than_its_positions_is_refused(tmp_path: Path, config: Any, most: int) -> None:
    assert longest(tmp_path, config, most) == most
    with pytest.raises(RecipeError, match=f"takes at most {most} tokens; set it to {most} or less"):
        longest(tmp_path, config, most + 1)
