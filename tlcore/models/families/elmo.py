"""ELMo: words from their characters, a bidirectional language model of LSTMs with projections, a learned mixture of its layers.

Source: Peters et al. 2018, "Deep contextualized word representations", arXiv:1802.05365, section 3; the network in its authors'
bilm-tf: character convolutions, maximum over each word, highway layers and a projection; two layers of LSTM cells in each
direction, whose cell and output are clipped, with a residual connection between the layers. Published sizes, in million parameters:
small 13.6, medium 28.0, original 93.6. Owns configuration, backbone and heads; words become characters in `elmo_tokens.py`,
published weights come through `elmo_files.py`. Registered by `__init__.py`.

The state begins at zero with each batch; bilm-tf carries it on from batch to batch. The mixture (equation 1 of the paper) is the
task's, so it stands in the head. The paper puts a large network for each task on top; the heads here are linear, over each word or
over the mean of all.

Shapes: B sentences, W words, K characters of a word (50), P units of the projection, L cells, N layers, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput, TokenClassifierOutput

from tlcore.models.families.checks import check_choice, check_counts, check_fraction
from tlcore.models.families.elmo_tokens import CHARACTERS, boundary_words

FILTERS = [[1, 32], [2, 32], [3, 64], [4, 128], [5, 256], [6, 512], [7, 1024]]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "tanh": torch.tanh}


class ElmoConfig(PreTrainedConfig):
    """Sizes of an ELMo network; the defaults are the original's.

    `filters`: [width in characters, how many] per convolution. `cell_clip`, `projection_clip`: bounds of a cell's state and of its
    output, 0 for none. `dropout` acts on the mixture in the heads.
    """

    model_type = "tlcore-elmo"

    vocab_size: int = CHARACTERS
    max_characters_per_token: int = 50
    character_size: int = 16
    filters: list[list[int]] | None = None
    activation: str = "relu"
    highway_layers: int = 2
    projection_size: int = 512
    lstm_size: int = 4096
    num_hidden_layers: int = 2
    cell_clip: float = 3.0
    projection_clip: float = 3.0
    skip_connections: bool = True
    dropout: float = 0.5
    initializer_range: float = 0.05
    pad_token_id: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        self.filters = FILTERS if self.filters is None else self.filters
        check_counts(self, "character_size", "projection_size", "lstm_size", "num_hidden_layers")
        check_counts(self, "highway_layers", least=0)
        check_counts(self, "max_characters_per_token", least=3)
        check_counts(self, "vocab_size", least=CHARACTERS)
        check_fraction(self, "dropout")
        check_choice(self, "activation", tuple(ACTIVATIONS))
        longest = self.max_characters_per_token
        if not self.filters or not all(len(row) == 2 and 1 <= row[0] <= longest and row[1] > 0 for row in self.filters):
            raise ValueError(
                f"{self.model_type}: filters is {self.filters!r}; give [width, how many], no wider than {longest} characters"
            )
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Values per word: both directions."""
        return 2 * self.projection_size


class Highway(nn.Module):
    """g * f(T x) + (1 - g) * x with g = sigmoid(C x) (Srivastava et al. 2015, arXiv:1505.00387)."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.transform = nn.Linear(units, units)
        self.carry = nn.Linear(units, units)

    def forward(self, values: Tensor) -> Tensor:
        """[..., units] to the same shape."""
        gate = torch.sigmoid(self.carry(values))
        return gate * functional.relu(self.transform(values)) + (1 - gate) * values


class ElmoCharacters(nn.Module):
    """A word's vector from its characters, whatever stands around it."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        filters = config.filters or []
        units = sum(many for _, many in filters)
        self.activate = ACTIVATIONS[config.activation]
        self.embedding = nn.Embedding(config.vocab_size, config.character_size)
        # no ModuleList: these are no layers one after another, and strategies would take them for the network's blocks
        self.convolutions = nn.ModuleDict(
            {str(at): nn.Conv1d(config.character_size, many, width) for at, (width, many) in enumerate(filters)}
        )
        self.highways = nn.Sequential(*(Highway(units) for _ in range(config.highway_layers)))
        self.projection = nn.Linear(units, config.projection_size)

    def forward(self, characters: Tensor) -> Tensor:
        """[B, W, K] of ids to [B, W, P]."""
        embedded = self.embedding(characters.flatten(0, 1)).transpose(1, 2)
        found = [self.activate(convolution(embedded).amax(dim=-1)) for convolution in self.convolutions.values()]
        words: Tensor = self.projection(self.highways(torch.cat(found, dim=-1)))
        return words.view(*characters.shape[:2], -1)


class ElmoLayer(GradientCheckpointingLayer):
    """LSTM cells with projection (Sak et al. 2014, arXiv:1402.1128), one set per direction, forward first.

    Gates stand in the published order: input, candidate, forget, output. The published constant 1 on the forget gate is part of
    `bias`.
    """

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        units, cells = config.projection_size, config.lstm_size
        self.cells = cells
        self.cell_clip, self.projection_clip = config.cell_clip, config.projection_clip
        self.input = nn.Parameter(torch.empty(2, 4 * cells, units))
        self.state = nn.Parameter(torch.empty(2, 4 * cells, units))
        self.bias = nn.Parameter(torch.empty(2 * 4 * cells))  # a vector, as vectors are not decayed
        self.projection = nn.Parameter(torch.empty(2, units, cells))

    def forward(self, words: Tensor, keep: Tensor) -> Tensor:
        """[2, B, W, P], either direction in reading order, to the same; `keep` [B, W] is false on padding, which stands last."""
        given = torch.stack([words[0], words[1].flip(1)])
        kept = torch.stack([keep, keep.flip(1)]).to(words.dtype).unsqueeze(-1)
        products = given.flatten(1, 2) @ self.input.transpose(1, 2) + self.bias.view(2, 1, -1)
        products = products.view(2, *keep.shape, -1)
        state = words.new_zeros(2, len(keep), self.projection.shape[1])
        cell = words.new_zeros(2, len(keep), self.cells)
        across, project = self.state.transpose(1, 2), self.projection.transpose(1, 2)
        states = []
        for product, here in zip(products.unbind(2), kept.unbind(2), strict=True):
            state, cell = self._step(torch.baddbmm(product, state, across), cell, project)
            state, cell = state * here, cell * here
            states.append(state)
        both = torch.stack(states, dim=2)
        return torch.stack([both[0], both[1].flip(1)])

    def _step(self, gates: Tensor, cell: Tensor, project: Tensor) -> tuple[Tensor, Tensor]:
        """Next output [2, B, P] and cell [2, B, L]."""
        enter, candidate, forget, leave = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
        cell = cell.clamp(-self.cell_clip, self.cell_clip) if self.cell_clip else cell
        state = torch.bmm(torch.sigmoid(leave) * torch.tanh(cell), project)
        return (state.clamp(-self.projection_clip, self.projection_clip) if self.projection_clip else state), cell


class ScalarMixture(nn.Module):
    """gamma * sum of softmax(s)_j * layer_j, the paper's equation 1."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, layers: tuple[Tensor, ...]) -> Tensor:
        """Tensors of one shape to one of that shape."""
        shares = torch.softmax(self.weights, dim=0)
        return self.gamma * sum(share * layer for share, layer in zip(shares.unbind(), layers, strict=True))


class ElmoPreTrainedModel(PreTrainedModel):
    """What backbone and heads share."""

    config: ElmoConfig
    config_class = ElmoConfig
    base_model_prefix = "elmo"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["ElmoLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ElmoLayer):
            for weight in (module.input, module.state, module.projection):
                bound = weight.shape[-1] ** -0.5
                init.uniform_(weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, ScalarMixture):
            init.zeros_(module.weights)
            init.ones_(module.gamma)
        elif isinstance(module, nn.Conv1d | nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class ElmoModel(ElmoPreTrainedModel):
    """The language model without its output layer: word vectors and both directions' states."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__(config)
        self.characters = ElmoCharacters(config)
        self.layers = nn.ModuleList(ElmoLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The characters' vectors."""
        return self.characters.embedding

    def words(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Characters [B, W, K] and which words are there [B, W], of either form that `forward` takes. Raises ValueError."""
        wide = self.config.max_characters_per_token
        if input_ids.dim() == 2 and input_ids.shape[1] % wide == 0:
            input_ids = input_ids.unflatten(1, (-1, wide))
            attention_mask = None if attention_mask is None else attention_mask[:, ::wide]
        if input_ids.dim() != 3 or input_ids.shape[2] != wide or input_ids.shape[1] == 0:
            raise ValueError(
                f"input_ids are {list(input_ids.shape)}; this model takes [batch, words, {wide}] characters, or a row of"
                f" {wide} per word, with at least one word"
            )
        keep = (input_ids != self.config.pad_token_id).any(dim=-1)
        return input_ids, keep if attention_mask is None else keep & attention_mask.bool()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """Layers of representation: `hidden_states` has N + 1 of [B, W, 2P], the word vectors twice and then each layer.

        Args:
            input_ids: [B, W, K], or [B, W * K] as the tokenizer gives them; padding words are 0 throughout and stand last.
            attention_mask: [B, W] or [B, W * K], 0 on words to leave out at the end.

        Raises:
            ValueError: ids of another form.
        """
        characters, keep = self.words(input_ids, attention_mask)
        bounded, there = _with_boundaries(characters * keep.unsqueeze(-1), keep)
        words = self.characters(bounded)
        both = torch.stack([words, words])
        found = [both]
        for at, layer in enumerate(self.layers):
            states = layer(both, there)
            both = states + both if at and self.config.skip_connections else states
            found.append(both)
        inside = keep.unsqueeze(-1).to(words.dtype)
        layers = tuple(torch.cat([each[0], each[1]], dim=-1)[:, 1:-1] * inside for each in found)
        return BaseModelOutput(last_hidden_state=layers[-1], hidden_states=layers)


def _with_boundaries(characters: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The sentence between the two words that mark its ends, [B, W + 2, K], and which words are there."""
    begin, end = (torch.tensor(word, device=characters.device) for word in boundary_words(characters.shape[-1]))
    bounded: Tensor = functional.pad(characters, (0, 0, 1, 1))
    bounded[:, 0] = begin
    last = keep.sum(dim=1) + 1
    bounded[torch.arange(len(bounded), device=bounded.device), last] = end
    there = torch.arange(bounded.shape[1], device=bounded.device) <= last.unsqueeze(1)
    return bounded, there


class ElmoForSequenceClassification(ElmoPreTrainedModel):
    """A linear classifier on the mean of the words' mixtures."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.elmo = ElmoModel(config)
        self.mixture = ScalarMixture(config.num_hidden_layers + 1)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits [B, C]; with `labels` (as `config.problem_type` says) the loss."""
        mixed = self.mixture(self.elmo(input_ids, attention_mask).hidden_states)
        keep = self.elmo.words(input_ids, attention_mask)[1]
        mean = mixed.sum(dim=1) / keep.sum(dim=1, keepdim=True).clamp(min=1)
        logits = self.classifier(functional.dropout(mean, self.config.dropout, self.training))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class ElmoForTokenClassification(ElmoPreTrainedModel):
    """A linear classifier on each word's mixture."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.elmo = ElmoModel(config)
        self.mixture = ScalarMixture(config.num_hidden_layers + 1)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> TokenClassifierOutput:
        """Logits [B, W, C]; with `labels` [B, W] (-100: none) the loss."""
        mixed = self.mixture(self.elmo(input_ids, attention_mask).hidden_states)
        logits = self.classifier(functional.dropout(mixed, self.config.dropout, self.training))
        loss = None if labels is None else _mean_loss(logits.flatten(0, 1), labels.flatten())
        return TokenClassifierOutput(loss=loss, logits=logits)


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy over words that have a label; 0, with gradients, where none has."""
    total = functional.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)
