"""Labels as they stand in a column."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_text_model import snippets, tiny_recipe, write_rows

from tlcore.errors import DataError
from tlcore.tasks import build_task

pytestmark = pytest.mark.unit


def test_lists_of_labels_without_multi_label_are_said(tmp_path: Path) -> None:
    rows = [{**row, "label": [row["label"]]} for row in snippets(8)]
    train = write_rows(tmp_path / "lists.jsonl", rows)
    with pytest.raises(DataError, match=r"column 'label' holds list<.*> where a sample has one label") as caught:
        build_task(tiny_recipe(tmp_path, data__train=str(train))).load_data()
    assert "set data.multi_label: true" in caught.value.hint
    build_task(tiny_recipe(tmp_path, data__train=str(train), data__multi_label=True)).load_data()
