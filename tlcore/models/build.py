"""Makes torch models of a resolved source, with transformers.

Owns construction and what the source does not carry of a model (`fitting.py` says whether it fits at all). Does not choose the
class nor the labels (`tasks/`), nor what trains (`transfer/`). Called by `tasks/`.

Weights stay in the format that the source stores: cast here, a model of 16 bits would be copied whole into the memory of every
rank, four bytes an element, before the engine takes a rank's part of it. Where a source has several, that of most elements counts,
and what is stored more exactly is kept so. Whoever computes with the model itself casts it. What the source does not carry is drawn
in the format of most, as transformers does by default.

There is no cache of base weights here, on purpose. transformers maps the safetensors file, so the system's page cache is the
cache: shared by all ranks of a node, given back under memory pressure, and private only where a weight is written. Measured with
MiniLM (22.7 M parameters, 91 MB): 110 ms for the first model of a process, 25 ms for each after it, against 25 ms plus 30 ms of
copying and 91 MB per process for a state dict kept in memory. Frozen parameters stay in the mapping and cost no memory per rank.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlcore.errors import ModelError
from tlcore.models.attention import attention_of
from tlcore.models.fitting import backbone_names, check_fits, is_pooler, named
from tlcore.models.source import ModelSource

if TYPE_CHECKING:
    import torch
    from torch import nn

_MOMENTUM, _MOST_MOMENTUM = 0.1, 0.5
_NEW = "tlcore_new_parameters"
_CARRIED = "tlcore_carried"
_GENERATION = "generation_config.json"


def build_pretrained(auto_class: Any, source: ModelSource, config: Any, seed: int) -> nn.Module:
    """A model on the CPU with the source's weights, in the format they are stored in (fp32 from a checkpoint); what the source does
    not carry is initialised from `seed`.

    A head of another shape (other labels) counts as not carried. `new_parameters` tells which these are, `is_carried` of a
    parameter whether it is none of them.

    Args:
        auto_class: a transformers Auto class, such as AutoModelForSequenceClassification.
        config: from `source.load_config`, with labels set.

    Raises:
        ModelError: no safetensors, unreadable, the weights are of another architecture than the configuration, or it has not the
            attention that the source wants.
        CheckpointError, StorageError: the source is a checkpoint that cannot be read.
    """
    if source.checkpoint is not None:
        return _build_from_checkpoint(auto_class, source, config, seed)
    files = source.weight_files()
    with _translated(auto_class, source), seeded(seed), quiet():
        stored = _stored_tensors(files)
        dtype = _common_format(stored)
        model, info = auto_class.from_pretrained(
            source.directory,
            config=source.with_stored_form(config),
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=source.trust_remote_code,
            attn_implementation=attention_of(auto_class, source, config),
            output_loading_info=True,
        )
        _keep_more_exact(model, stored, dtype)
    reshaped = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]}
    check_fits(model, source.name, set(info["missing_keys"]), reshaped, stored)
    _note_new(model, set(info["missing_keys"]) | reshaped)
    return _as_module(model)


@contextlib.contextmanager
def _translated(auto_class: Any, source: ModelSource) -> Iterator[None]:
    """What transformers raises inside, as a ModelError that names the source; a package may be missing as well."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"model source {source.name!r}: cannot build {auto_class.__name__}: {reason[:300]}") from error


@dataclass(frozen=True)
class _Stored:
    """A tensor in a safetensors file."""

    path: Path
    format: str
    shape: tuple[int, ...]


def _stored_tensors(files: Sequence[Path]) -> dict[str, _Stored]:
    """By name, those of safetensors files."""
    from safetensors import safe_open

    found: dict[str, _Stored] = {}
    for path in files:
        with safe_open(str(path), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                tensor = file.get_slice(key)
                found[key] = _Stored(path, tensor.get_dtype(), tuple(tensor.get_shape()))
    return found


def _common_format(stored: Mapping[str, _Stored]) -> Any:
    """The floating format of most elements; fp32 for one that nothing trains in. A few tables in fp32 (`inv_freq`) must not have a
    model of 16 bits cast whole, in every rank's own memory."""
    import torch

    elements = Counter[str]()
    for each in stored.values():
        if each.format[0] in "FB" and each.format != "BOOL":
            elements[each.format] += math.prod(each.shape)
    known = {"F16": torch.float16, "BF16": torch.bfloat16}
    return known.get(max(elements, key=elements.__getitem__), torch.float32) if elements else torch.float32


def _keep_more_exact(model: Any, stored: Mapping[str, _Stored], dtype: Any) -> None:
    """Take weights that are stored in fp32, beside most others in 16 bits, as they are: the cast has rounded them. One that
    transformers makes of others, or keeps under another name, stays rounded."""
    import torch
    from safetensors import safe_open

    if dtype == torch.float32:
        return
    prefix = getattr(model, "base_model_prefix", "")
    for name, parameter in model.named_parameters():
        there = next((one for one in _spellings(name, prefix) if one in stored), None)
        if there is None or stored[there].format != "F32" or stored[there].shape != tuple(parameter.shape):
            continue
        with safe_open(str(stored[there].path), framework="pt") as file:
            exact = file.get_tensor(there)
        if torch.equal(exact.to(parameter.dtype), parameter):
            parameter.data = exact


def _note_new(model: Any, names: set[str]) -> None:
    there = dict(model.named_parameters())
    mark_new(model, frozenset(names & set(there)))
    for name, parameter in there.items():
        if name not in names:
            setattr(parameter, _CARRIED, True)


def build_scratch(auto_class: Any, source: ModelSource, config: Any, seed: int) -> nn.Module:
    """The same network with random weights in fp32, drawn from `seed`; reads no weights at all. It produces text by the source's
    own settings, as one with weights does: what is trained, evaluated later and exported must all end a text alike."""
    import torch

    with _translated(auto_class, source), seeded(seed), quiet():
        model = auto_class.from_config(
            config,
            dtype=torch.float32,
            trust_remote_code=source.trust_remote_code,
            attn_implementation=attention_of(auto_class, source, config),
        )
    if (source.directory / _GENERATION).is_file() and model.can_generate():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(source.directory)
    setattr(model, _NEW, frozenset(name for name, _ in model.named_parameters()))
    return _as_module(model)


def _build_from_checkpoint(auto_class: Any, source: ModelSource, config: Any, seed: int) -> nn.Module:
    """The weights alone of a checkpoint, in the model's own memory; read from the store once per node (`weights.py`)."""
    from tlcore.models.stored import StoredWeights, transposed_layers, weights_of
    from tlcore.models.weights import node_weights

    assert source.checkpoint is not None
    model: Any = build_scratch(auto_class, source, config, seed)
    store, manifest = source.checkpoint.open()
    stored = StoredWeights(store, manifest, transposed_layers(model), reader=node_weights(store, manifest))
    prefix = getattr(model, "base_model_prefix", "")
    carried: dict[str, Any] = {}
    missing: set[str] = set()
    reshaped: set[str] = set()
    for name, tensor in weights_of(model).items():
        # As from_pretrained does: a backbone fits itself with or without a head around it.
        there = next((one for one in _spellings(name, prefix) if stored.shape(one) is not None), None)
        if there is None:
            missing.add(name)
        elif list(stored.shape(there) or ()) != list(tensor.shape):
            reshaped.add(name)
        else:
            carried[there] = tensor
    check_fits(model, source.name, missing, reshaped, tuple(manifest.parameters))
    stored.read_into(carried)
    _note_new(model, missing | reshaped)
    return _as_module(model)


def _spellings(name: str, prefix: str) -> tuple[str, ...]:
    return (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")) if prefix else (name,)


def new_head_line(model: nn.Module, source: str) -> str | None:
    """One sentence on what a checkpoint used as a source did not carry; None when it carried all."""
    return _drawn_line(new_parameters(model), source)


def new_backbone_line(model: nn.Module, source: str) -> str | None:
    """One sentence on what a pre-trained source did not carry of its backbone; None when nothing but head and pooler is new."""
    new = new_parameters(model) & backbone_names(model)
    return _drawn_line([name for name in new if not is_pooler(name)], source)


def _drawn_line(new: Collection[str], source: str) -> str | None:
    return f"{source} has no {named(new)} of this shape: drawn anew from train.seed" if new else None


def new_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that the source did not carry; all of them for a model from scratch."""
    names: frozenset[str] = getattr(model, _NEW, frozenset())
    return names


def is_carried(parameter: torch.Tensor) -> bool:
    """Whether the source carried it, so that every rank has the same without being told."""
    return getattr(parameter, _CARRIED, False)


def carry_over(parameter: torch.Tensor, *made: torch.Tensor) -> None:
    """What is computed of a carried parameter alone is carried as well."""
    if is_carried(parameter):
        for each in made:
            setattr(each, _CARRIED, True)


def mark_new(model: nn.Module, names: frozenset[str]) -> None:
    """Have `new_parameters` give these names."""
    setattr(model, _NEW, names)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers inside; its settings are put back after."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside, and leave the caller's random state as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _as_module(model: Any) -> nn.Module:
    """Plain `Any` ends here; also back to training mode, which from_pretrained leaves."""
    module: nn.Module = model.train()
    _turn_momenta(module)
    return module


def _turn_momenta(module: nn.Module) -> None:
    """Batch norms that would forget everything but the last batch get torch's usual momentum.

    torch's momentum is the share of the new batch in the statistics. transformers' MobileNetV1, MobileNetV2, EfficientNet and
    ALIGN hand TensorFlow's on, the share of the old ones (0.99 to 0.9997), and are then evaluated by one batch. Turned into
    1 - 0.997, the statistics would follow the weights of a fine-tuning, which is short, too late.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    for each in module.modules():
        if isinstance(each, _BatchNorm) and each.momentum is not None and each.momentum > _MOST_MOMENTUM:
            each.momentum = _MOMENTUM
