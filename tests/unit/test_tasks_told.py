"""Logits at told places alone: the same numbers and gradients as of all places, from an output layer that sees fewer rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from tlcore.models.families.transfo_xl import TransfoXLConfig, TransfoXLForCausalLM
from tlcore.tasks.base import IGNORED
from tlcore.tasks.logits import mean_cross_entropy
from tlcore.tasks.told import TOLD, told_logits, told_loss, with_most_told, with_told

pytestmark = pytest.mark.unit

VOCABULARY = 40
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, intermediate_size=16))


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, intermediate_size=16))


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    )


def transfo_xl() -> Any:
    sizes = {"d_model": 16, "d_embed": 16, "n_head": 2, "d_head": 8, "d_inner": 16, "n_layer": 1, "mem_len": 8}
    return TransfoXLForCausalLM(TransfoXLConfig(vocab_size=VOCABULARY, cutoffs=[20], div_val=2, dropout=0.0, **sizes))


def t5() -> Any:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=VOCABULARY, **sizes))


def bart() -> Any:
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in _BART.items()}
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(vocab_size=VOCABULARY, d_model=16, **sides)
    )


_BART = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
WITH_OUTPUT = (llama, bert, gpt2, t5, bart)
MODELS = (*WITH_OUTPUT, transfo_xl)


def batch_of(model: Any) -> dict[str, torch.Tensor]:
    """Three samples: one with two labels, one with one at its very end, one without any."""
    torch.manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (3, 7))
    labels = torch.full_like(ids, IGNORED)
    labels[0, 2:4], labels[1, 6] = ids[0, 2:4], ids[1, 6]
    batch = {"input_ids": ids, "labels": labels}
    return {**batch, "decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else batch


def seen_rows(model: Any) -> list[torch.Size]:
    rows: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(lambda _layer, given, _out: rows.append(given[0].shape[:-1]))
    return rows


def whole(model: Any, batch: dict[str, torch.Tensor], ahead: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels as transformers' own losses line them up."""
    logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}, use_cache=False).logits
    return logits[:, : logits.shape[1] - ahead], batch["labels"][:, ahead:]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("ahead", [0, 1])
def test_loss_and_gradients_are_those_of_all_places(make: Any, ahead: int) -> None:
    torch.manual_seed(0)
    model = make().eval()
    batch = batch_of(model)
    mean_cross_entropy(*whole(model, batch, ahead)).backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    logits, tokens = told_logits(model, with_told(batch, ahead), ahead=ahead, use_cache=False)
    assert logits.shape == (3, VOCABULARY) and logits.dtype == torch.float32
    assert (tokens != IGNORED).all()
    mean_cross_entropy(logits, tokens).backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-6, rtol=1e-4, msg=lambda text, at=name: f"{at}: {text}"
        )


@pytest.mark.parametrize("make", [llama, transfo_xl])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_loss_of_what_is_told_is_that_of_its_logits(make: Any, labelled: bool) -> None:
    torch.manual_seed(0)
    model = make().train()
    batch = batch_of(model)
    if not labelled:
        batch["labels"][:] = IGNORED
    batch = with_told(batch, 1)
    mean_cross_entropy(*told_logits(model, batch, ahead=1, use_cache=False)).backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    told_loss(model, batch, use_cache=False).backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-6, rtol=1e-4)


def test_an_adaptive_softmax_scores_the_labels_clusters_alone() -> None:
    model = transfo_xl().train()
    batch = batch_of(model)
    ids = batch["input_ids"].clamp(max=19)  # none is in the rare cluster
    scored: list[int] = []
    scores = model.softmax._scores
    model.softmax._scores = lambda hidden, bucket: (scored.append(len(hidden)), scores(hidden, bucket))[1]
    told_loss(model, with_told({"input_ids": ids, "labels": ids}, 1), use_cache=False)
    assert scored == [18, 1]  # the rare one for one row, whose weights all ranks must gather


@pytest.mark.parametrize("make", WITH_OUTPUT)
def test_the_output_layer_sees_told_places_alone(make: Any) -> None:
    model = make().eval()
    rows = seen_rows(model)
    told_logits(model, with_told(batch_of(model)), use_cache=False)
    assert rows == [torch.Size([3])]


def test_the_output_layer_is_left_as_it_was() -> None:
    model = llama().eval()
    batch = with_told(batch_of(model))
    told_logits(model, batch)
    assert model(input_ids=batch["input_ids"]).logits.shape == (3, 7, VOCABULARY)


def test_a_batch_without_labels_gives_nothing_and_gradients_of_nothing() -> None:
    model = llama()
    batch = batch_of(model)
    batch["labels"][:] = IGNORED
    loss = mean_cross_entropy(*told_logits(model, with_told(batch, 1), ahead=1, use_cache=False))
    loss.backward()
    assert loss.item() == 0
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())


def test_a_compiled_model_is_not_looked_into() -> None:
    model = llama().eval()
    rows = seen_rows(model)
    batch = with_told(batch_of(model))
    expected, _ = told_logits(model, batch)
    model._compiled_call_impl = model._call_impl  # what `Module.compile` sets, without a compiler
    found, _ = told_logits(model, batch)
    assert rows == [torch.Size([3]), torch.Size([3, 7])]
    torch.testing.assert_close(found, expected)


def test_an_output_layer_given_other_rows_is_left_alone() -> None:
    """As of a model that cuts its hidden state itself: what it gives must then be told apart by its own shape."""
    model = llama().eval()
    batch = with_told(batch_of(model))
    rows = seen_rows(model)
    model(input_ids=batch["input_ids"], logits_to_keep=1)
    told_logits(model, batch)
    assert rows == [torch.Size([3, 1]), torch.Size([3])]


def test_most_told_is_a_share_of_all_places() -> None:
    batch = {"input_ids": torch.zeros(2, 10), "labels": torch.zeros(2, 10)}
    assert with_most_told(batch)[TOLD].tolist() == list(range(20))
    assert with_most_told(batch, 0.15)[TOLD].tolist() == [0, 1, 2]
