"""Makes torch models of a resolved source, with transformers.

Owns construction and what it says about the weights: which parameters the source does not carry, whether the source fits at all.
Does not choose the class nor the labels (`tasks/`), nor what trains (`transfer/`). Called by `tasks/`.

Weights stay in the format that the source stores, where it stores one: cast here, a model of 16 bits would be copied whole into the
memory of every rank, four bytes an element, before the engine takes a rank's part of it. Whoever computes with the model itself
casts it. What the source does not carry is then drawn in that format too, as transformers does by default.

There is no cache of base weights here, on purpose. transformers maps the safetensors file, so the system's page cache is the
cache: shared by all ranks of a node, given back under memory pressure, and private only where a weight is written. Measured with
MiniLM (22.7 M parameters, 91 MB): 110 ms for the first model of a process, 25 ms for each after it, against 25 ms plus 30 ms of
copying and 91 MB per process for a state dict kept in memory. Frozen parameters stay in the mapping and cost no memory per rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlcore.errors import ModelError
from tlcore.models.families import is_own, register_families
from tlcore.models.source import ModelSource

if TYPE_CHECKING:
    import torch
    from torch import nn

_NEW = "tlcore_new_parameters"
_CARRIED = "tlcore_carried"
_NAMES_SHOWN = 4
_GENERATION = "generation_config.json"


def build_pretrained(auto_class: Any, source: ModelSource, config: Any, seed: int) -> nn.Module:
    """A model on the CPU with the source's weights, in the format they are stored in (fp32 where they are in several, or in a
    checkpoint); what the source does not carry is initialised from `seed`.

    A head of another shape (other labels) counts as not carried. `new_parameters` tells which these are, `is_carried` of a
    parameter whether it is none of them.

    Args:
        auto_class: a transformers Auto class, such as AutoModelForSequenceClassification.
        config: from `source.load_config`, with labels set.

    Raises:
        ModelError: no safetensors, unreadable, or the weights are of another architecture than the configuration.
        CheckpointError, StorageError: the source is a checkpoint that cannot be read.
    """
    if source.checkpoint is not None:
        return _build_from_checkpoint(auto_class, source, config, seed)
    from safetensors import SafetensorError

    files = source.weight_files()
    try:
        with seeded(seed), quiet():
            model, info = auto_class.from_pretrained(
                source.directory,
                config=config,
                dtype=_stored_format(files),
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=source.trust_remote_code,
                attn_implementation=_attention(auto_class, config),
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"model source {source.name!r}: cannot build {auto_class.__name__}: {reason[:300]}") from error
    reshaped = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]}
    _check_fits(model, source, set(info["missing_keys"]), reshaped)
    _note_new(model, set(info["missing_keys"]) | reshaped)
    return _as_module(model)


def _stored_format(files: Sequence[Path]) -> Any:
    """The one floating format that safetensors files are in; fp32 where there are several, or one that nothing trains in."""
    import torch
    from safetensors import safe_open

    known = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    found: set[str] = set()
    for path in files:
        with safe_open(str(path), framework="pt") as file:
            found |= {name for key in file.keys() if (name := file.get_slice(key).get_dtype())[0] in "FB"}  # noqa: SIM118 (no mapping)
    found.discard("BOOL")
    return known.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


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

    with seeded(seed), quiet():
        model = auto_class.from_config(
            config,
            dtype=torch.float32,
            trust_remote_code=source.trust_remote_code,
            attn_implementation=_attention(auto_class, config),
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
    _check_fits(model, source, missing, reshaped)
    stored.read_into(carried)
    _note_new(model, missing | reshaped)
    return _as_module(model)


def _spellings(name: str, prefix: str) -> tuple[str, ...]:
    return (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")) if prefix else (name,)


def new_head_line(model: nn.Module, source: str) -> str | None:
    """One sentence on what a checkpoint used as a source did not carry; None when it carried all."""
    new = sorted(new_parameters(model))
    if not new:
        return None
    named = ", ".join(new[:_NAMES_SHOWN]) + (f" and {len(new) - _NAMES_SHOWN} more" if len(new) > _NAMES_SHOWN else "")
    return f"{source} has no {named} of this shape: drawn anew from train.seed"


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


def _attention(auto_class: Any, config: Any) -> str | dict[str, str]:
    """Torch's own fused attention where the family has it; transformers refuses the name where it has not, also for the backbone
    that a detector is built around."""
    from transformers import AutoBackbone

    if is_own(config.model_type):  # the configuration need not come from `load_config`
        register_families()
    chosen = _attention_of(auto_class, config)
    backbone = getattr(config, "backbone_config", None)
    return chosen if backbone is None else {"": chosen, "backbone_config": _attention_of(AutoBackbone, backbone)}


def _attention_of(auto_class: Any, config: Any) -> str:
    family = auto_class._model_mapping.get(type(config), None)
    if isinstance(family, tuple):
        family = family[0]
    return "sdpa" if getattr(family, "_supports_sdpa", True) else "eager"


def _check_fits(model: Any, source: ModelSource, missing: set[str], reshaped: set[str]) -> None:
    """A head may be new; a backbone that is mostly new means that the weights belong to another network."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    backbone = {name for name, _ in model.named_parameters() if name.startswith(prefix)}
    if wrong := sorted(reshaped & backbone):
        raise ModelError(
            f"model source {source.name!r}: {wrong[0]} has another shape in the weights than config.json says",
            hint="config.json and the weights do not belong together",
        )
    absent = sorted(missing & backbone)
    if backbone and 2 * len(absent) > len(backbone):
        raise ModelError(
            f"model source {source.name!r}: its weights lack {len(absent)} of {len(backbone)} backbone parameters, "
            f"such as {absent[0]}",
            hint="config.json and the weights do not belong together",
        )


def _as_module(model: Any) -> nn.Module:
    """Plain `Any` ends here; also back to training mode, which from_pretrained leaves."""
    module: nn.Module = model.train()
    return module
