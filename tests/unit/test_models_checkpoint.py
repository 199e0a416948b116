"""A checkpoint's URL as `model.source`: its weights alone, with configuration and tokenizer of what it was trained from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text_model import save_tiny_bert, tiny_recipe, write_rows

from tests.stored_model import store_model
from tlcore.errors import CheckpointError, ModelError
from tlcore.models import new_head_line, new_parameters, resolve_source
from tlcore.storage import open_store
from tlcore.tasks import build_task
from tlcore.transfer import apply_strategy

pytestmark = pytest.mark.unit

HEAD = {"classifier.weight", "classifier.bias"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests fetch is no other test's, nor the user's."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def trained(home: Path, **changes: Any) -> tuple[str, Any]:
    """URL of a checkpoint whose weights are not the source's, and the model that was stored."""
    recipe = tiny_recipe(home, **changes)
    model: Any = build_task(recipe, facts={"labels": ["neg", "pos"]}).build_model(from_scratch=False)
    apply_strategy(model, recipe)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return store_model(open_store(f"file://{home}/run"), model, recipe), model.eval()


def built(home: Path, url: str, **changes: Any) -> Any:
    return build_task(tiny_recipe(home, model__source=url, **changes)).build_model(from_scratch=False)


def test_the_weights_are_the_checkpoints_and_the_rest_its_sources(tmp_path: Path) -> None:
    url, stored = trained(tmp_path)
    source = resolve_source(url)
    assert source.directory == (tmp_path / "model").resolve()
    assert source.load_tokenizer()("good film")["input_ids"] == [2, 4, 6, 3]
    assert len(source.digest) == 64 and source.digest != resolve_source(str(tmp_path / "model")).digest
    model = built(tmp_path, url)
    wanted = stored.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    assert new_parameters(model) == set() and new_head_line(model, url) is None
    assert model.training and {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_another_number_of_labels_gives_a_new_head(tmp_path: Path) -> None:
    url, stored = trained(tmp_path)
    rows = [{"text": "good film", "label": label} for label in ("a", "b", "c")] * 8
    data = str(write_rows(tmp_path / "three.jsonl", rows))
    model = built(tmp_path, url, data__train=data)
    assert model.classifier.weight.shape[0] == 3
    assert new_parameters(model) == HEAD
    said = new_head_line(model, url)
    assert said is not None and said.startswith(url) and "classifier.weight" in said and "\n" not in said
    assert torch.equal(
        model.bert.encoder.layer[2].output.dense.weight, stored.bert.encoder.layer[2].output.dense.weight
    )
    assert torch.equal(model.classifier.weight, built(tmp_path, url, data__train=data).classifier.weight)
    other_seed = built(tmp_path, url, data__train=data, train__seed=1)
    assert not torch.equal(model.classifier.weight, other_seed.classifier.weight)


def test_updates_come_merged(tmp_path: Path) -> None:
    url, stored = trained(tmp_path, transfer__strategy="lora", transfer__rank=2)
    model = built(tmp_path, url)
    tokens = torch.tensor([[2, 4, 6, 3]])
    with torch.no_grad():
        assert torch.allclose(model.eval()(input_ids=tokens).logits, stored(input_ids=tokens).logits, atol=1e-4)
    assert not [name for name, _ in model.named_parameters() if "lora" in name or "base_layer" in name]


def test_a_checkpoint_of_a_checkpoint_keeps_the_first_ones_tokenizer(tmp_path: Path) -> None:
    first, _ = trained(tmp_path)
    (tmp_path / "second").mkdir()
    recipe = tiny_recipe(tmp_path, model__source=first)
    model: Any = build_task(recipe).build_model(from_scratch=False)
    second = store_model(open_store(f"file://{tmp_path}/second"), model, recipe)
    assert resolve_source(second).directory == (tmp_path / "model").resolve()
    assert torch.equal(built(tmp_path, second).classifier.weight, model.classifier.weight)


def test_head_strategies_see_the_new_head(tmp_path: Path) -> None:
    url, _ = trained(tmp_path)
    model = built(tmp_path, url)
    apply_strategy(model, tiny_recipe(tmp_path, transfer__strategy="head"))
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == HEAD | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def test_scratch_reads_no_weights(tmp_path: Path) -> None:
    url, _ = trained(tmp_path)
    store = open_store(f"file://{tmp_path}/run")
    store.delete([each.key for each in store.list("cas/")])
    recipe = tiny_recipe(tmp_path, model__source=url, transfer__strategy="scratch")
    assert build_task(recipe).build_model(from_scratch=True).training
    with pytest.raises(CheckpointError):
        built(tmp_path, url)


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    url, _ = trained(tmp_path)
    with pytest.raises(CheckpointError, match="trial t000 has no checkpoint of step 7"):
        resolve_source(url.replace("step-00000005", "step-00000007"))
    with pytest.raises(ModelError, match=r"at revision None, not main"):
        resolve_source(url, revision="main")
    save_tiny_bert(tmp_path / "model")
    import json

    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(ModelError, match=r"has another shape in the weights than config\.json says"):
        built(tmp_path, url)
