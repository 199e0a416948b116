"""Transformer-XL: attention over a segment and the remembered states of those before it, by relative positions.

Source: Dai et al. 2019, "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context", arXiv:1901.02860, section 3 and
appendix B, with the adaptive words of `transfo_xl_adaptive.py`. Its base model on WikiText-103 has 151,107,538 parameters
(41,066,400 in the layers), the 12-layer one on enwik8 41 million. Configuration fields have the names that the published
configurations have. Owns configuration, backbone and heads; published weights come through `convert.py`. Registered by
`__init__.py`.

    score(i, j) = (q_i + u) k_j + (q_i + v) r_(i - j),   r = W_r sinusoid,   after Vaswani et al. 2017

Shapes: B texts, T words of a segment, M remembered words, S = M + T, D units, H heads of d, V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from tlcore.models.families.checks import check_counts, check_fraction
from tlcore.models.families.transfo_xl_adaptive import (
    AdaptiveEmbedding,
    AdaptiveSoftmax,
    check_cutoffs,
    projected,
)

Memories = tuple[Tensor, ...]
"""One [B, M, D] per layer: what the layer was given at the words before this segment."""


class TransfoXLConfig(PreTrainedConfig):
    """Sizes of a Transformer-XL; the defaults are the published large model on WikiText-103.

    `mem_len`: words remembered. `clamp_len`: distances above count as this one, none where it is not above 0. `same_length`: each
    word sees equally many. `untie_r`: u and v per layer. `pre_lnorm`: norms before the layers' parts. `cutoffs`, `div_val`: the
    buckets of words, and by how much each has fewer dimensions than the one before.
    """

    model_type = "tlcore-transfo-xl"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    }

    vocab_size: int = 267_735
    cutoffs: list[int] | tuple[int, ...] = (20_000, 40_000, 200_000)
    d_model: int = 1024
    d_embed: int = 1024
    n_head: int = 16
    d_head: int = 64
    d_inner: int = 4096
    div_val: int = 4
    pre_lnorm: bool = False
    n_layer: int = 18
    mem_len: int = 1600
    clamp_len: int = 1000
    same_length: bool = True
    proj_share_all_but_first: bool = True
    untie_r: bool = True
    dropout: float = 0.1
    dropatt: float = 0.0
    init_std: float = 0.02
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    eos_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        self.cutoffs = list(self.cutoffs)
        check_counts(self, "n_head", "d_head", "d_inner", "n_layer")
        check_counts(self, "mem_len", least=0)
        check_fraction(self, "dropout", "dropatt")
        check_cutoffs(self)
        if self.same_length and not self.mem_len:
            raise ValueError(f"{self.model_type}: same_length lets each word see mem_len words; give mem_len above 0")
        if self.d_model % 2:
            raise ValueError(f"{self.model_type}: d_model is {self.d_model}; sines and cosines need an even number")
        super().__post_init__(**kwargs)


@dataclass
class TransfoXLOutput(ModelOutput):
    """`last_hidden_state` [B, T, D]; `mems`, to be given with the next segment."""

    last_hidden_state: Tensor | None = None
    mems: Memories | None = None


@dataclass
class TransfoXLCausalLMOutput(ModelOutput):
    """`logits` are log probabilities [B, T, V]; None in training where labels are given."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    mems: Memories | None = None


class PositionBiases(nn.Module):
    """The paper's u and v, [H, d] each: what a query prefers by content and by distance, whatever the word."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.empty(config.n_head, config.d_head))
        self.position = nn.Parameter(torch.empty(config.n_head, config.d_head))

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, T, H, d] with u and with v."""
        return queries + self.content, queries + self.position


class RelativeAttention(nn.Module):
    """Attention by relative positions, with its residual connection and norm."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.heads, self.size = config.n_head, config.d_head
        self.dropout, self.dropatt, self.norm_first = config.dropout, config.dropatt, config.pre_lnorm
        inner = config.n_head * config.d_head
        self.qkv = nn.Linear(config.d_model, 3 * inner, bias=False)
        self.out = nn.Linear(inner, config.d_model, bias=False)
        self.relative = nn.Linear(config.d_model, inner, bias=False)
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.biases = PositionBiases(config) if config.untie_r else None

    def forward(
        self, hidden: Tensor, memory: Tensor, distances: Tensor, hidden_away: Tensor, shared: PositionBiases | None
    ) -> Tensor:
        """[B, T, D] to the same.

        Args:
            memory: [B, M, D].
            distances: sinusoids [S, D], the farthest distance first.
            hidden_away: [T, S], true where a word must not look.
            shared: u and v of all layers, where a layer has none of its own.
        """
        seen = torch.cat([memory, hidden], dim=1)
        qkv = self.qkv(self.norm(seen) if self.norm_first else seen)
        queries, keys, values = (each.unflatten(-1, (self.heads, self.size)) for each in qkv.chunk(3, dim=-1))
        biases = self.biases if shared is None else shared
        assert biases is not None
        by_content, by_position = biases(queries[:, -hidden.shape[1] :])
        relative = self.relative(distances).unflatten(-1, (self.heads, self.size))
        scores = torch.einsum("bihd,bjhd->bhij", by_content, keys)
        scores = scores + _shifted(torch.einsum("bihd,jhd->bhij", by_position, relative))
        scores = (scores * self.size**-0.5).masked_fill(hidden_away, float("-inf"))
        shares = functional.dropout(scores.softmax(dim=-1, dtype=torch.float32), self.dropatt, self.training)
        mixed = torch.einsum("bhij,bjhd->bihd", shares.to(values.dtype), values).flatten(2)
        added = hidden + functional.dropout(self.out(mixed), self.dropout, self.training)
        return added if self.norm_first else self.norm(added)


def _shifted(scores: Tensor) -> Tensor:
    """Column j of row i, which counts from the farthest distance, becomes that of the distance i - j (the paper's appendix B).

    [B, H, T, S] to the same; what comes to stand behind a word's own place is to be masked.
    """
    rows, columns = scores.shape[-2:]
    padded = functional.pad(scores, (1, 0)).reshape(*scores.shape[:2], columns + 1, rows)
    return padded[:, :, 1:].reshape(*scores.shape[:2], rows, columns)


class FeedForward(nn.Module):
    """Two products with ReLU between, residual connection and norm."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.dropout, self.norm_first = config.dropout, config.pre_lnorm
        self.up = nn.Linear(config.d_model, config.d_inner)
        self.down = nn.Linear(config.d_inner, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] to the same."""
        inner = functional.relu(self.up(self.norm(hidden) if self.norm_first else hidden))
        inner = self.down(functional.dropout(inner, self.dropout, self.training))
        added = hidden + functional.dropout(inner, self.dropout, self.training)
        return added if self.norm_first else self.norm(added)


class TransfoXLLayer(GradientCheckpointingLayer):
    """Attention and feed-forward."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.attention = RelativeAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self, hidden: Tensor, memory: Tensor, distances: Tensor, hidden_away: Tensor, shared: PositionBiases | None
    ) -> Tensor:
        """As `RelativeAttention`."""
        found: Tensor = self.feed_forward(self.attention(hidden, memory, distances, hidden_away, shared))
        return found


class TransfoXLPreTrainedModel(PreTrainedModel):
    """What backbone and heads share."""

    config: TransfoXLConfig
    config_class = TransfoXLConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["TransfoXLLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.init_std
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            return
        for name, parameter in module.named_parameters(recurse=False):
            if "bias" in name:
                init.zeros_(parameter)
            else:
                init.normal_(parameter, 0.0, std)


class TransfoXLModel(TransfoXLPreTrainedModel):
    """The layers, over words and memories."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.embedding = AdaptiveEmbedding(config)
        self.biases = None if config.untie_r else PositionBiases(config)
        self.layers = nn.ModuleList(TransfoXLLayer(config) for _ in range(config.n_layer))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word vectors."""
        return self.embedding

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, mems: Memories | None = None, **_: Any
    ) -> TransfoXLOutput:
        """States of words [B, T], with `mems` of the segment before.

        `attention_mask` is not needed: padding stands at the end, where no word looks. What is remembered of a padded segment
        holds the padding too, so segments that go on should be full.

        Raises:
            ValueError: no words, or memories of another number of layers or texts.
        """
        self._check(input_ids, mems)
        drop = self.config.dropout
        hidden = functional.dropout(self.embedding(input_ids), drop, self.training)
        memories = mems or tuple(hidden.new_zeros(len(hidden), 0, self.config.d_model) for _ in self.layers)
        there, words = memories[0].shape[1], input_ids.shape[1]
        distances = functional.dropout(self._distances(there + words, hidden), drop, self.training)
        hidden_away = self._hidden_away(words, there, hidden.device)
        given = []
        for layer, memory in zip(self.layers, memories, strict=True):
            given.append(hidden)
            hidden = layer(hidden, memory, distances, hidden_away, self.biases)
        return TransfoXLOutput(
            last_hidden_state=functional.dropout(hidden, drop, self.training), mems=self._remember(given, memories)
        )

    def _check(self, input_ids: Tensor, mems: Memories | None) -> None:
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError(
                f"input_ids are {list(input_ids.shape)}; this model takes [batch, words], at least one word"
            )
        if mems is not None and (len(mems) != len(self.layers) or len(mems[0]) != len(input_ids)):
            raise ValueError(
                f"mems are of {len(mems)} layers and {len(mems[0]) if mems else 0} texts; this batch has {len(self.layers)}"
                f" layers and {len(input_ids)} texts"
            )

    def _remember(self, given: list[Tensor], memories: Memories) -> Memories | None:
        """The newest `mem_len` words of memory and segment, outside the graph."""
        longest = self.config.mem_len
        if not longest:
            return None
        pairs = zip(memories, given, strict=True)
        return tuple(torch.cat([old, new], dim=1)[:, -longest:].detach() for old, new in pairs)

    def _distances(self, seen: int, like: Tensor) -> Tensor:
        """Sinusoids [S, D] of the distances S - 1 .. 0: all sines, then all cosines."""
        far = torch.arange(seen - 1, -1, -1, device=like.device, dtype=torch.float32)
        if self.config.clamp_len > 0:
            far = far.clamp(max=self.config.clamp_len)
        units = torch.arange(0, self.config.d_model, 2, device=like.device, dtype=torch.float32)
        angles = torch.outer(far, 10_000 ** (-units / self.config.d_model))
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)

    def _hidden_away(self, words: int, there: int, device: torch.device) -> Tensor:
        """[T, S]: later words, and with `same_length` also those too far back for the first word to see as far."""
        ahead = torch.ones(words, there + words, dtype=torch.bool, device=device)
        away = ahead.triu(1 + there)
        if self.config.same_length:
            beyond = there + words - self.config.mem_len
            away = away | ahead.tril(beyond - words if beyond > 0 else -words)
        return away


class TransfoXLForCausalLM(TransfoXLPreTrainedModel, GenerationMixin):
    """The language model with its adaptive softmax. Generation goes on from memory, one word at a time; texts of one batch must be
    equally long, as nothing masks padding before a text."""

    scores_labels_alone = True
    """Its loss leaves out the clusters of the vocabulary that no label is in (`tasks/told.py`)."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.transformer = TransfoXLModel(config)
        self.softmax = AdaptiveSoftmax(config)
        embedding = self.transformer.embedding
        # which there are depends on the buckets, so it cannot stand in the class
        self._tied_weights_keys = {
            f"softmax.weight_{at}": f"transformer.embedding.tables.{at}.weight" for at in embedding.tables
        }
        if projected(config) and config.proj_share_all_but_first:
            for at in range(1, len(config.cutoffs) + 1):
                source = at if config.div_val > 1 else 0
                self._tied_weights_keys[f"softmax.projection_{at}"] = (
                    f"transformer.embedding.projections.{source}.weight"
                )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        mems: Memories | None = None,
        **_: Any,
    ) -> TransfoXLCausalLMOutput:
        """Log probabilities of the next word at each word, or with `labels` [B, T] (the words themselves, -100: none) the mean
        loss; what is remembered for the next segment. Raises ValueError as the backbone."""
        output = self.transformer(input_ids, mems=mems)
        hidden = output.last_hidden_state
        loss = None if labels is None else self._loss(hidden, labels)
        logits = None
        if labels is None or not self.training:
            logits = self.softmax(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        return TransfoXLCausalLMOutput(loss=loss, logits=logits, mems=output.mems)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, mems: Memories | None = None, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """Of a text that memory holds, the last word alone. Texts that go on together are equally long, so no mask is needed."""
        return {"input_ids": input_ids if mems is None else input_ids[:, -1:], "mems": mems}

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **rest: Any) -> Any:
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **rest)
        return updated | {"mems": outputs.mems}

    def _loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        following = labels[:, 1:].flatten()
        losses: Tensor = self.softmax(hidden[:, :-1].flatten(0, 1), following)
        return losses.sum() / (following >= 0).sum().clamp(min=1)


class TransfoXLForSequenceClassification(TransfoXLPreTrainedModel):
    """A linear classifier on each text's last word."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = TransfoXLModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits [B, C] of words [B, T]; `attention_mask` [B, T] is 0 on padding, at the end; with `labels` the loss."""
        hidden = self.transformer(input_ids).last_hidden_state
        lengths = (
            input_ids.new_full((len(input_ids),), input_ids.shape[1])
            if attention_mask is None
            else attention_mask.sum(1)
        )
        last = (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
        logits = self.score(hidden.gather(1, last).squeeze(1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)
