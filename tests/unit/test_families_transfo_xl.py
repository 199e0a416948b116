"""Transformer-XL: the published sizes and names, its equations word by word in numpy, its memory, its adaptive words.

No package carries the published weights: a state dict of the published names is written here, small and random.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_checks import (
    check_checkpointing_changes_nothing,
    check_is_a_source,
    check_learns,
    check_scratch_follows_the_seed,
    check_structure,
    fixed,
    parameters_on_meta,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tlcore.errors import ModelError
from tlcore.models import build_pretrained, new_parameters, resolve_source
from tlcore.models.families.convert import convert
from tlcore.models.families.transfo_xl import TransfoXLConfig

pytestmark = pytest.mark.unit

SIZES: dict[str, Any] = {"vocab_size": 13, "cutoffs": [4, 9], "d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 3}
SIZES |= {"d_inner": 10, "div_val": 2, "n_layer": 3, "mem_len": 6, "clamp_len": 4, "dropout": 0.0}
CASES: dict[str, dict[str, Any]] = {
    "divided": {},
    "one table": {"div_val": 1, "untie_r": False},
    "one table, projected": {"div_val": 1, "d_embed": 6},
    "norms first": {"pre_lnorm": True, "same_length": False, "clamp_len": -1, "cutoffs": []},
    "nothing shared": {"proj_share_all_but_first": False},
}


def tiny(**changes: Any) -> TransfoXLConfig:
    return TransfoXLConfig(**SIZES | {"num_labels": 3} | changes)


def words(labels: bool = False, rows: int = 2, length: int = 5) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 13, (rows, length), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids} | ({"labels": ids} if labels else {})


def published_state(config: TransfoXLConfig) -> dict[str, torch.Tensor]:
    """Random tensors of the names and shapes that transformers 4 saved, the tied ones twice."""
    generator = torch.Generator().manual_seed(11)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.5

    wide, inner, heads = config.d_model, config.n_head * config.d_head, (config.n_head, config.d_head)
    ends = [0, *config.cutoffs, config.vocab_size]
    state: dict[str, torch.Tensor] = {"transformer.pos_emb.inv_freq": draw(wide // 2)}
    split, project = config.div_val > 1, config.div_val > 1 or config.d_embed != wide
    for at in range(len(ends) - 1 if split else 1):
        size = config.d_embed // config.div_val**at
        table = draw(ends[at + 1] - ends[at], size) if split else draw(config.vocab_size, size)
        state[f"transformer.word_emb.emb_layers.{at}.weight"] = table
        state |= {f"crit.out_layers.{at}.weight": table, f"crit.out_layers.{at}.bias": draw(len(table))}
        if project:
            state[f"transformer.word_emb.emb_projs.{at}"] = draw(wide, size)
    for at in range(len(ends) - 1 if project else 0):
        tied = state[f"transformer.word_emb.emb_projs.{at if split else 0}"]
        state[f"crit.out_projs.{at}"] = tied if at and config.proj_share_all_but_first else draw(*tied.shape)
    if config.cutoffs:
        rare = len(config.cutoffs)
        state |= {"crit.cluster_weight": draw(rare, config.d_embed), "crit.cluster_bias": draw(rare)}
    shared = {"r_w_bias": draw(*heads), "r_r_bias": draw(*heads)}
    if not config.untie_r:
        state |= {f"transformer.{name}": each for name, each in shared.items()}
    for at in range(config.n_layer):
        attention, forward = f"transformer.layers.{at}.dec_attn", f"transformer.layers.{at}.pos_ff"
        own = shared if not config.untie_r else {"r_w_bias": draw(*heads), "r_r_bias": draw(*heads)}
        state |= {f"{attention}.{name}": each for name, each in own.items()}
        state |= {f"{attention}.qkv_net.weight": draw(3 * inner, wide), f"{attention}.o_net.weight": draw(wide, inner)}
        state |= {f"{attention}.r_net.weight": draw(inner, wide)}
        state |= {
            f"{forward}.CoreNet.0.weight": draw(config.d_inner, wide),
            f"{forward}.CoreNet.0.bias": draw(config.d_inner),
        }
        state |= {f"{forward}.CoreNet.3.weight": draw(wide, config.d_inner), f"{forward}.CoreNet.3.bias": draw(wide)}
        for part in (attention, forward):
            state |= {f"{part}.layer_norm.weight": 1 + draw(wide), f"{part}.layer_norm.bias": draw(wide)}
    return state


class Published:
    """The network in numpy, from the published names, one word at a time."""

    def __init__(self, state: dict[str, torch.Tensor], config: TransfoXLConfig) -> None:
        self.config = config
        self.state = {name: tensor.double().numpy() for name, tensor in state.items()}
        self.ends = [0, *config.cutoffs, config.vocab_size]

    def bucket(self, word: int) -> int:
        return sum(word >= cut for cut in self.config.cutoffs)

    def embed(self, word: int) -> np.ndarray:
        at = self.bucket(word) if self.config.div_val > 1 else 0
        first = self.ends[at] if self.config.div_val > 1 else 0
        vector = self.state[f"transformer.word_emb.emb_layers.{at}.weight"][word - first]
        projection = self.state.get(f"transformer.word_emb.emb_projs.{at}")
        return (vector if projection is None else projection @ vector) * np.sqrt(self.config.d_model)

    def norm(self, part: str, x: np.ndarray) -> np.ndarray:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scaled * self.state[f"{part}.layer_norm.weight"] + self.state[f"{part}.layer_norm.bias"]

    def distance(self, far: int) -> np.ndarray:
        far = min(far, self.config.clamp_len) if self.config.clamp_len > 0 else far
        angles = far / 10_000 ** (np.arange(0, self.config.d_model, 2) / self.config.d_model)
        return np.concatenate([np.sin(angles), np.cos(angles)])

    def attend(self, part: str, seen: np.ndarray, count: int) -> np.ndarray:
        """What the last `count` words of `seen` take from all before them."""
        c, state = self.config, self.state
        heads = lambda x: x.reshape(c.n_head, c.d_head)  # noqa: E731
        q, k, v = np.split(seen @ state[f"{part}.qkv_net.weight"].T, 3, axis=-1)
        found = []
        for i in range(len(seen) - count, len(seen)):
            scores = np.full((c.n_head, len(seen)), -np.inf)
            for j in range(i + 1):
                # with same_length, a word sees as many as the segment's first word has memory for
                if c.same_length and len(seen) > c.mem_len and j <= i - c.mem_len:
                    continue
                r = heads(state[f"{part}.r_net.weight"] @ self.distance(i - j))
                content = ((heads(q[i]) + state[f"{part}.r_w_bias"]) * heads(k[j])).sum(-1)
                position = ((heads(q[i]) + state[f"{part}.r_r_bias"]) * r).sum(-1)
                scores[:, j] = (content + position) / np.sqrt(c.d_head)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            mixed = np.stack([shares[h] @ np.stack([heads(each)[h] for each in v]) for h in range(c.n_head)])
            found.append(state[f"{part}.o_net.weight"] @ mixed.ravel())
        return np.stack(found)

    def hidden(self, ids: list[int]) -> np.ndarray:
        x = np.stack([self.embed(word) for word in ids])
        for at in range(self.config.n_layer):
            part, after = f"transformer.layers.{at}.dec_attn", f"transformer.layers.{at}.pos_ff"
            first = self.config.pre_lnorm
            x = x + self.attend(part, self.norm(part, x) if first else x, len(x))
            x = x if first else self.norm(part, x)
            inner = self.norm(after, x) if first else x
            inner = np.maximum(
                inner @ self.state[f"{after}.CoreNet.0.weight"].T + self.state[f"{after}.CoreNet.0.bias"], 0
            )
            x = x + inner @ self.state[f"{after}.CoreNet.3.weight"].T + self.state[f"{after}.CoreNet.3.bias"]
            x = x if first else self.norm(after, x)
        return x

    def scores(self, x: np.ndarray, at: int) -> np.ndarray:
        layer = at if self.config.div_val > 1 else 0
        weight, bias = self.state[f"crit.out_layers.{layer}.weight"], self.state[f"crit.out_layers.{layer}.bias"]
        if self.config.div_val == 1:
            weight, bias = (each[self.ends[at] : self.ends[at + 1]] for each in (weight, bias))
        if at == 0 and self.config.cutoffs:
            weight = np.concatenate([weight, self.state["crit.cluster_weight"]])
            bias = np.concatenate([bias, self.state["crit.cluster_bias"]])
        projection = self.state.get(f"crit.out_projs.{at}")
        values = weight @ (x if projection is None else projection.T @ x) + bias
        return values - values.max() - np.log(np.exp(values - values.max()).sum())

    def log_probabilities(self, x: np.ndarray) -> np.ndarray:
        first, frequent = self.scores(x, 0), self.ends[1]
        rare = [first[frequent + at - 1] + self.scores(x, at) for at in range(1, len(self.ends) - 1)]
        return np.concatenate([first[:frequent], *rare])


@pytest.mark.parametrize("case", CASES)
def test_a_published_state_dict_gives_what_the_equations_give(case: str, tmp_path: Path) -> None:
    config = tiny(**CASES[case])
    state = published_state(config)
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": "transfo-xl"}))
    convert("transfo-xl", tmp_path / "pytorch_model.bin", tmp_path / "converted")
    source = resolve_source(str(tmp_path / "converted"))
    model = build_pretrained(AutoModelForCausalLM, source, source.load_config(), seed=0).eval()
    assert new_parameters(model) == frozenset()
    given = words(labels=True, length=8)
    with torch.no_grad():
        found = model(**given)
    published, losses = Published(state, config), []
    for ids, logits in zip(given["input_ids"].tolist(), found.logits, strict=True):
        expected = np.stack([published.log_probabilities(x) for x in published.hidden(ids)])
        np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(np.exp(expected).sum(-1), 1)
        losses += [-expected[at, word] for at, word in enumerate(ids[1:])]
    assert found.loss.item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_segments_with_memory_are_one_long_text() -> None:
    """Where memory holds all that was, a text read in pieces is the text read at once."""
    model = fixed(AutoModelForCausalLM.from_config(tiny(mem_len=20, same_length=False)))
    ids = words(length=11)["input_ids"]
    with torch.no_grad():
        whole = model(ids).logits
        mems, pieces = None, []
        for piece in ids.split([4, 1, 6], dim=1):
            output = model(piece, mems=mems)
            mems = output.mems
            pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert [tuple(each.shape) for each in mems] == [(2, 11, 8)] * 3
    assert not any(each.requires_grad for each in model(ids).mems)
    assert all(each.shape[1] == 6 for each in fixed(AutoModelForCausalLM.from_config(tiny()))(ids).mems)


def test_generation_from_memory_is_the_likeliest_word_each_time() -> None:
    model = fixed(AutoModelForCausalLM.from_config(tiny(mem_len=20, same_length=False, eos_token_id=None)))
    given = words(rows=2)["input_ids"]
    found = model.generate(given, max_new_tokens=5, do_sample=False)
    expected = given
    for _ in range(5):
        with torch.no_grad():
            expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert found.tolist() == expected.tolist()


def test_the_base_model_has_the_published_number_of_parameters() -> None:
    """WikiText-103 base, as its authors' script prints: 151,107,538, of which 41,066,400 in the layers."""
    config = TransfoXLConfig(
        d_model=410, d_embed=410, n_head=10, d_head=41, d_inner=2100, n_layer=16, div_val=1, untie_r=False
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.transformer.layers.parameters()) == 41_066_400
    assert sum(parameter.numel() for parameter in model.parameters()) == 151_107_538


def test_the_enwik8_model_has_its_41_million() -> None:
    config = TransfoXLConfig(
        vocab_size=204, cutoffs=[], d_model=512, d_embed=512, n_head=8, d_head=64, d_inner=2048, n_layer=12, div_val=1
    )
    assert round(parameters_on_meta(AutoModelForCausalLM, config) / 1e6) == 41


@pytest.mark.parametrize("case", CASES)
def test_the_language_model_is_a_source_learns_and_recomputes(case: str, tmp_path: Path) -> None:
    config = tiny(**CASES[case])
    check_is_a_source(AutoModelForCausalLM, config, tmp_path, words(), "logits")
    check_scratch_follows_the_seed(AutoModelForCausalLM, config, tmp_path / "scratch")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    check_checkpointing_changes_nothing(model, words(labels=True))
    check_learns(model, words(labels=True), steps=30)


def test_the_classifier_reads_the_last_word_that_is_no_padding(tmp_path: Path) -> None:
    batch = words(rows=3) | {"attention_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] + [0] * 4])}
    check_is_a_source(AutoModelForSequenceClassification, tiny(), tmp_path, batch, "logits")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny()).eval()
    check_structure(model, 3, {"score.weight"})
    with torch.no_grad():
        short = model(batch["input_ids"][1:2, :3]).logits
        torch.testing.assert_close(model(**batch).logits[1:2], short)
    check_learns(model, batch | {"labels": torch.tensor([0, 1, 2])})


def test_every_bucket_gets_a_gradient_though_no_word_is_in_it() -> None:
    """Under ZeRO-3 all ranks reduce the same parameters in every step, whatever their words."""
    model = AutoModelForCausalLM.from_config(tiny())
    ids = torch.zeros(1, 4, dtype=torch.long)
    model(ids, labels=ids).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_padding_has_no_weight_in_the_loss() -> None:
    model = fixed(AutoModelForCausalLM.from_config(tiny(same_length=False)))
    ids = words(rows=1)["input_ids"]
    padded = torch.nn.functional.pad(ids, (0, 3))
    labels = torch.nn.functional.pad(ids, (0, 3), value=-100)
    with torch.no_grad():
        torch.testing.assert_close(model(padded, labels=labels).loss, model(ids, labels=ids).loss)


def test_its_memory_can_be_counted_over_fake_tensors() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(tiny()).train()
        ids = torch.zeros(2, 6, dtype=torch.long)
        model(ids, labels=ids).loss.backward()
    assert model.softmax.bias_0.grad is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutoffs": [9, 4]}, r"cutoffs is \[9, 4\]; give rising word ids"),
        ({"cutoffs": [4, 13]}, "below vocab_size, 13"),
        ({"div_val": 4}, "leaves nothing in the last of 3 buckets"),
        ({"d_model": 7}, "d_model is 7"),
        ({"mem_len": 0}, "give mem_len above 0"),
        ({"dropatt": 1}, "dropatt is 1"),
    ],
)
def test_a_bad_configuration_says_which_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_bad_inputs_and_files_say_what_is_wrong(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(tiny())
    with pytest.raises(ValueError, match=r"\[2, 0\].*at least one word"):
        model(torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="mems are of 1 layers and 2 texts; this batch has 3 layers and 1 texts"):
        model(torch.zeros(1, 2, dtype=torch.long), mems=(torch.zeros(2, 1, 8),))
    torch.save(published_state(tiny()), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"needs its config\.json beside it"):
        convert("transfo-xl", tmp_path / "pytorch_model.bin", tmp_path / "out")
    (tmp_path / "config.json").write_text(json.dumps(tiny(d_inner=9).to_dict()))
    with pytest.raises(ModelError, match=r"of \[10, 8\] instead of \[9, 8\]"):
        convert("transfo-xl", tmp_path / "pytorch_model.bin", tmp_path / "out")
