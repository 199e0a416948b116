"""Several texts in a sample: which they are, that they do not see each other, and which models are refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tasks_text_generation import task_on

from tests.families import text
from tlcore.engine.activations import nothing_allocated
from tlcore.errors import RecipeError
from tlcore.tasks import Task
from tlcore.tasks.packing import check_keeps_apart, pack

pytestmark = pytest.mark.unit

MAKERS = {
    "mistral": text.generation("MistralForCausalLM", "MistralConfig", sliding_window=3, **text.DECODER),
    "gemma2": text.generation("Gemma2ForCausalLM", "Gemma2Config", sliding_window=3, **text.DECODER),
    "opt": text.generation(
        "OPTForCausalLM",
        "OPTConfig",
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        word_embed_proj_dim=16,
        max_position_embeddings=64,
    ),
}


def task_of(home: Path, family: str, **data: Any) -> Task:
    return task_on(home, MAKERS.get(family) or text.MAKERS[f"{family}/text-generation"], "text-generation", **data)


def test_every_text_is_packed_once_and_no_group_is_too_long() -> None:
    lengths = np.random.default_rng(1).integers(1, 40, 500).astype(np.int32)
    groups = pack(lengths, 64)
    assert sorted(np.concatenate(groups).tolist()) == list(range(500))
    assert max(int(lengths[group].sum()) for group in groups) <= 64
    assert len(groups) <= 1.05 * lengths.sum() / 64, "hardly any room is left"
    assert [group.tolist() for group in groups] == [group.tolist() for group in pack(lengths, 64)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mistral", "gemma2"])
def test_packed_texts_do_not_see_each_other(tmp_path: Path, family: str) -> None:
    packed = task_of(tmp_path / "packed", family, packing=True, validation=0.5)
    model = packed.build_model(from_scratch=False).eval()
    read = packed._splits["train"].read  # type: ignore[attr-defined]
    row = next(row for row in range(len(read)) if len(read.texts_of(row)) > 1)
    with torch.no_grad():
        ids, _, places = packed._sample(read, row)  # type: ignore[attr-defined]
        together = model(
            input_ids=torch.tensor(np.array([ids]), dtype=torch.int64),
            position_ids=torch.tensor(np.array([places])),
            use_cache=False,
        ).logits[0]
        starts = [*np.flatnonzero(places == 0).tolist(), len(ids)]
        for start, end in pairwise(starts):
            alone = model(
                input_ids=torch.tensor(np.array([ids[start:end]]), dtype=torch.int64), use_cache=False
            ).logits[0]
            torch.testing.assert_close(together[start:end], alone, rtol=1e-4, atol=1e-5)


TINY: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def network(name: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings))


def transfo_xl() -> Any:
    from tests.tiny_families import transfo_xl as made

    return made()[0]


LEAKING = {
    "bloom": (lambda: network("Bloom", vocab_size=20, hidden_size=16, n_layer=2, n_head=2), "does not tell its texts"),
    "mpt": (lambda: network("Mpt", vocab_size=20, d_model=16, n_layers=2, n_heads=2), "does not tell its texts"),
    "falcon": (lambda: network("Falcon", **TINY), "does not tell its texts"),
    "gpt-oss": (
        lambda: network("GptOss", **TINY, num_key_value_heads=2, head_dim=8, intermediate_size=16, num_local_experts=2),
        "does not tell its texts",
    ),
    "transfo-xl": (transfo_xl, "does not tell its texts"),
    "mamba": (lambda: network("Mamba", vocab_size=20, hidden_size=16, num_hidden_layers=2), "carry .*MambaForCausalLM"),
    "qwen3-next": (
        lambda: network(
            "Qwen3Next",
            **TINY,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=16,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=8,
            layer_types=["full_attention", "linear_attention"],
        ),
        "carry .*linear_attention",
    ),
    "lfm2": (
        lambda: network(
            "Lfm2", **TINY, num_key_value_heads=2, intermediate_size=16, layer_types=["full_attention", "conv"]
        ),
        "carry .*conv",
    ),
}


@pytest.mark.parametrize("family", LEAKING)
def test_a_model_in_which_packed_texts_would_see_each_other_is_refused(family: str) -> None:
    """Their code takes the position ids, or swallows them, and attends over the whole sample: not a word was said."""
    made, why = LEAKING[family]
    model = made()
    state = torch.get_rng_state()
    said = rf"data\.packing: is true, but {type(model).__name__} .*{why}.*set it to false"
    with pytest.raises(RecipeError, match=said):
        check_keeps_apart(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_packing_is_refused_where_the_model_is_built_also_before_there_are_weights(tmp_path: Path) -> None:
    task = task_of(tmp_path, "opt", packing=True)
    with pytest.raises(RecipeError, match=r"data\.packing: is true, but OPTForCausalLM"):
        task.build_model(from_scratch=False)
    with nothing_allocated(), pytest.raises(RecipeError, match=r"data\.packing: is true, but OPTForCausalLM"):
        task.build_model(from_scratch=True)
    assert task_of(tmp_path / "plain", "opt").build_model(from_scratch=False).training
    fine = task_of(tmp_path / "fine", "llama", packing=True)
    with nothing_allocated():
        fine.build_model(from_scratch=True)


def test_flash_attention_is_given_packed_samples_in_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several rows transformers takes each for one text there, whatever its position ids."""
    task = task_of(tmp_path, "qwen3", packing=True, max_length=12)
    model: Any = task.build_model(from_scratch=False).eval()
    shapes: list[torch.Size] = []
    model.model.register_forward_pre_hook(
        lambda _, given, named: shapes.append(named["input_ids"].shape), with_kwargs=True
    )
    batch = task.collate("train", [0, 1, 2])
    rows = task.loss(model, batch)
    monkeypatch.setattr("transformers.utils.generic.is_flash_attention_requested", lambda config: True)
    row = task.loss(model, batch)
    counts = task.metrics()
    counts.update(model, batch)
    assert shapes == [batch["input_ids"].shape, *[(1, batch["input_ids"].numel())] * 2]
    torch.testing.assert_close(row, rows)
    assert counts.compute()["loss"] == pytest.approx(rows.item(), rel=1e-5)


@pytest.mark.parametrize("hands_on", [True, False])
def test_flash_attention_is_asked_whether_it_is_given_the_position_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hands_on: bool
) -> None:
    """It has no masks that could look for several texts."""
    from transformers.models.qwen3 import modeling_qwen3

    model: Any = task_of(tmp_path, "qwen3", packing=True).build_model(from_scratch=False)
    monkeypatch.setattr("transformers.utils.generic.is_flash_attention_requested", lambda config: True)
    if hands_on:
        check_keeps_apart(model)
    else:
        for block in model.model.layers:
            block.register_forward_pre_hook(
                lambda _, given, named: (given, {**named, "position_ids": None}), with_kwargs=True
            )
        with pytest.raises(RecipeError, match="does not tell its texts apart"):
            check_keeps_apart(model)
    functions = modeling_qwen3.ALL_ATTENTION_FUNCTIONS
    assert not functions._local_mapping
