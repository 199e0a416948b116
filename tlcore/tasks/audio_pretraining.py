"""Going on with the pre-training of a speech model on sounds without texts: wav2vec 2.0's contrastive task.

Owns the task's data, model class, loss, metrics and export. What is hidden and how it is told is `contrast.py`'s. Called through
`build_task`.

In training, masks and distractors are drawn from torch's global generator, which is seeded for each step and rank; in evaluation
from a generator of each sample's own, so that every evaluation asks the same. The loss that is reported is the contrastive part.
Code vectors are chosen by Gumbel softmax, whose temperature falls with each update as published for the base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.errors import DataError, ModelError
from tlcore.tasks.base import Batch, Draws, MetricAccumulator, SumOverRanks
from tlcore.tasks.model_task import ModelTask
from tlcore.tasks.sound_inputs import SoundInputs, model_inputs, output_lengths
from tlcore.tasks.sounds import Sounds, check_sounds, open_sound, read_sounds, sound_examples
from tlcore.tasks.splits import Splits

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tlcore.recipe import Recipe
    from tlcore.tasks.contrast import Hidden

_SAMPLES: Final = "samples"
"""In a batch: each sound's number in its split, -1 for a filler."""
HOTTEST, COLDEST, COOLING = 2.0, 0.5, 0.999995
"""Temperature of the first update, the least one, and the factor from one update to the next: Baevski et al. 2020,
arXiv:2006.11477, section 4.2, of the base model."""


class AudioPretraining(ModelTask[Sounds]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForPreTraining"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._inputs = SoundInputs(self._source, recipe.data.max_seconds)
        self._splits = Splits(recipe.data, self._read)

    def check_data(self) -> None:
        check_sounds(self._recipe.data)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        chosen = self._splits[split]
        return chosen.read.frames[chosen.rows]

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        import torch

        chosen = self._splits[split]
        filler = len(indices) == 0
        sounds = chosen.read.pcm(chosen.rows_of([0] if filler else indices))
        return {**self._inputs.batch(sounds), _SAMPLES: torch.tensor([-1] if filler else [int(i) for i in indices])}

    def largest_batch(self, samples: int) -> Batch:
        import torch

        return {**self._inputs.largest(samples), _SAMPLES: torch.zeros(samples, dtype=torch.int64)}

    def begin_step(self, model: nn.Module, step: int) -> None:
        _inner(model).set_gumbel_temperature(max(HOTTEST * COOLING**step, COLDEST))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        from tlcore.tasks.contrast import contrastive_losses

        config = _inner(model).config
        logits, codes = self._reckon(model, batch) if _is_fake(batch) else self._tell(model, batch, None)
        vectors = config.num_codevectors_per_group * config.num_codevector_groups
        diversity = (vectors - codes.float()) / vectors
        loss = contrastive_losses(logits).mean() + config.diversity_loss_weight * diversity
        counted: Tensor = loss * (batch[_SAMPLES] >= 0).any().to(loss.device)
        return counted

    def metrics(self) -> MetricAccumulator:
        return _Told(self)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """How well the model tells the hidden steps of each sound: a path, a URL of the store or bytes."""
        import torch

        answers = []
        for given in inputs:
            sound = open_sound(given, self._inputs.rate_hz)[: self._inputs.window]
            counts = _Told(self)
            counts.update(model, {**self._inputs.batch([sound]), _SAMPLES: torch.zeros(1, dtype=torch.int64)})
            answers.append(counts.compute())
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        return sound_examples(self._recipe.data, split, count, None)

    def _processors(self) -> list[Any]:
        return [self._inputs.extractor]

    def tell(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [H, 1 + K] of hidden steps that follow from the samples alone; none of a filler."""
        import torch

        samples = batch[_SAMPLES].tolist()
        logits, _ = self._tell(model, batch, [torch.Generator().manual_seed(1 + number) for number in samples])
        return logits if samples[0] >= 0 else logits[:0]

    def _hide(self, model: nn.Module, batch: Batch, generators: list[torch.Generator] | None) -> Hidden:
        from tlcore.tasks.contrast import hide

        config = _inner(model).config
        steps = [int(count) for count in output_lengths(model, batch).tolist()]
        width = int(_inner(model)._get_feat_extract_output_lengths(batch["input_values"].shape[1]))
        share, span = self._recipe.data.mask_probability, config.mask_time_length
        return hide(steps, width, share, span, config.num_negatives, generators)

    def _tell(self, model: nn.Module, batch: Batch, generators: list[torch.Generator] | None) -> tuple[Tensor, Tensor]:
        """Logits as `contrast` gives them, and how many code vectors are in use (their perplexity)."""
        from tlcore.tasks.contrast import contrast

        hidden = self._hide(model, batch, generators)
        inputs = model_inputs(model, batch)
        outputs = model(**inputs, mask_time_indices=hidden.mask.to(inputs["input_values"].device))
        temperature = _inner(model).config.contrastive_logits_temperature
        logits = contrast(outputs.projected_states, outputs.projected_quantized_states, hidden, temperature)
        return logits, outputs.codevector_perplexity

    def _reckon(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same over tensors without memory, where what is hidden cannot be drawn: the first steps stand for it."""
        from torch.nn.functional import cosine_similarity

        inner, inputs = _inner(model), model_inputs(model, batch)
        inner.config.apply_spec_augment = False  # this model is made to be counted, and goes after
        outputs = model(**inputs)
        count = round(self._recipe.data.mask_probability * outputs.projected_states[..., 0].numel())
        told, wanted = (
            states.flatten(0, 1)[:count].float()
            for states in (outputs.projected_states, outputs.projected_quantized_states)
        )
        others = wanted.unsqueeze(1).repeat(1, 1 + inner.config.num_negatives, 1)
        return cosine_similarity(told.unsqueeze(1), others, dim=-1), outputs.codevector_perplexity

    def _config(self) -> Any:
        config = self._source.load_config()
        if config.model_type != "wav2vec2":
            raise ModelError(
                f"model source {self._source.name!r} is a {config.model_type}, which is not pre-trained by contrast",
                hint="name a Wav2Vec2 source",
            )
        # The embedding of hidden steps is there only where the configuration hides some by itself.
        config.apply_spec_augment, config.mask_time_prob = True, self._recipe.data.mask_probability
        return config

    def _read(self, place: str, hub_split: str) -> Sounds:
        data = self._recipe.data
        return read_sounds(place, data.audio, self._inputs.rate_hz, data.max_seconds, hub_split)


class _Told:
    """Loss and accuracy over hidden steps; a MetricAccumulator."""

    def __init__(self, task: AudioPretraining) -> None:
        import torch

        self._task = task
        self._sums = torch.zeros(3, dtype=torch.float64)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch."""
        import torch

        from tlcore.tasks.contrast import contrastive_losses

        with torch.no_grad():
            logits = self._task.tell(model, batch)
            right = (logits.argmax(dim=-1) == 0).sum()
            loss = contrastive_losses(logits).double().sum()
            self._sums += torch.stack(
                [loss, right.double(), torch.tensor(float(len(logits)), device=loss.device)]
            ).cpu()

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """One sum for all counts."""
        self._sums = sum_over_ranks(self._sums)

    def compute(self) -> dict[str, float]:
        """loss (contrastive, mean over hidden steps) and accuracy. Raises DataError when nothing was hidden."""
        loss, right, steps = self._sums.tolist()
        if steps == 0:
            raise DataError("no sound was evaluated", hint="the split is empty")
        return {"loss": loss / steps, "accuracy": right / steps}


def _is_fake(batch: Batch) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(batch[_SAMPLES], FakeTensor)


def _inner(model: nn.Module) -> Any:
    """The model, or that inside an engine."""
    return getattr(model, "module", model)
