"""The parts of a model that transfer strategies speak of, found from the model itself.

Owns where the blocks, the head and what lies between are. No names of families: blocks are the longest list of like modules (of
the encoder and of the decoder, in a model that has both; of the language model, in one that sees or hears beside it), or those that
the backbone names; the head is what the pre-trained source does not carry or what lies outside the backbone. Called by
`strategies.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from tlcore.models import new_parameters

Block = tuple[str, ...]
"""Names of the modules of one block: mostly one."""


@runtime_checkable
class Blocked(Protocol):
    """A module whose blocks are no elements of one list."""

    def blocks_in_order(self) -> list[Block]:
        """From input to output, names within the module."""


@dataclass(frozen=True)
class Structure:
    """Parameter names by part; every parameter is in exactly one.

    `blocks` are in order from input to output, `before` is what feeds them (embeddings, a vision tower), `after` what follows them
    inside the backbone (a final norm, a pooler), `head` what the task adds. Of a model of encoder and decoder the first `encoders`
    blocks are the encoder's, whose last one has the encoder's final norm with it; elsewhere that is all of them.
    """

    before: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    after: tuple[str, ...]
    head: tuple[str, ...]
    encoders: int


def read_structure(model: nn.Module) -> Structure:
    """Find the parts of `model`. A model that names no blocks and has no list of like ones has none: its backbone is `before`."""
    names = [name for name, _ in model.named_parameters()]
    head = _head(model, names)
    towers = _towers(model)
    prefixes = [tuple(f"{name}." for name in block) for tower in towers for block in tower]
    blocks = [[name for name in names if name.startswith(each) and name not in head] for each in prefixes]
    encoders = len(towers[0])
    if len(towers) > 1:
        blocks[encoders - 1] += _finish_of(towers[0], names, blocks[encoders - 1])
    inside = {name for block in blocks for name in block}
    rest = [name for name in names if name not in inside and name not in head]
    last = max((index for index, name in enumerate(names) if name in inside), default=len(names))
    # Embeddings registered late (DeBERTa's relative positions) feed the blocks all the same.
    embeddings = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    # So do towers beside a language model (KOSMOS-2's pictures).
    language = _language_model(model)
    later = {name for name in names[last + 1 :] if language is None or name.startswith(f"{language}.")}
    after = tuple(name for name in rest if name in later and not name.startswith(embeddings))
    before = tuple(name for name in rest if name not in after)
    return Structure(
        before, tuple(tuple(block) for block in blocks), after, tuple(name for name in names if name in head), encoders
    )


def _finish_of(tower: list[Block], names: list[str], last: list[str]) -> list[str]:
    """What follows the last block inside the module that the tower is a list of."""
    home = tower[-1][0].rpartition(".")[0].rpartition(".")[0]
    later = names[names.index(last[-1]) + 1 :]
    # BART registers the norm of its embeddings behind its blocks.
    return [name for name in later if name.startswith(f"{home}.") and "embed" not in name]


def _head(model: nn.Module, names: list[str]) -> set[str]:
    """What stands outside transformers' backbone attribute, and inside it what the source did not carry.

    A model from scratch carries nothing; there only the first rule tells.
    """
    prefix = getattr(model, "base_model_prefix", "")
    has_backbone = bool(prefix) and getattr(model, prefix, None) is not None
    outside = {name for name in names if has_backbone and not name.startswith(f"{prefix}.")}
    new = new_parameters(model)
    return outside | (set(new) if len(new) < len(names) else set())


def learned_output(model: nn.Module) -> frozenset[str]:
    """Names of a language model's output layer over its vocabulary, where the source has it and it is not the embedding."""
    output, embedding = _layer(model, "get_output_embeddings"), _layer(model, "get_input_embeddings")
    if not isinstance(output, nn.Linear) or not isinstance(embedding, nn.Embedding):
        return frozenset()
    if output.out_features != embedding.num_embeddings or output.weight is embedding.weight:
        return frozenset()
    own = {id(parameter) for parameter in output.parameters()}
    return frozenset(name for name, each in model.named_parameters() if id(each) in own) - new_parameters(model)


def _layer(model: nn.Module, getter: str) -> nn.Module | None:
    """What transformers' models tell of themselves; None for other models, and for those that have no such layer."""
    get = getattr(model, getter, None)
    if get is None:
        return None
    try:
        found: nn.Module | None = get()
    except NotImplementedError:
        return None
    return found


def block_names(model: nn.Module) -> list[str]:
    """Names of the modules of the blocks that are nearest the output: a decoder's, where there is an encoder too."""
    return [name for block in _towers(model)[-1] for name in block]


def _towers(model: nn.Module) -> list[list[Block]]:
    """The blocks of the model, or of its encoder and of its decoder. A backbone whose blocks stand in no list names them itself."""
    for name, module in model.named_modules():
        if isinstance(module, Blocked):
            before = f"{name}." if name else ""
            return [[tuple(f"{before}{layer}" for layer in block) for block in module.blocks_in_order()]]
    return [[(name,) for name in tower] for tower in _towers_of_lists(model)]


def _towers_of_lists(model: nn.Module) -> list[list[str]]:
    if (language := _language_model(model)) is not None:
        return [_blocks_of(model, language)]
    is_both = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    name = _name_of(model, _layer(model, "get_encoder")) if is_both else None
    if name is None:
        return [_longest_list(model)]
    first, second = _blocks_of(model, name), _longest_list(model, without=name)
    return [first, second] if first and second else [_longest_list(model)]


def _language_model(model: nn.Module) -> str | None:
    """Name of the decoder in a model with a configuration of its own for it: one of a tower that sees or hears, often the deeper
    one, and a language model. None in others."""
    config: Any = getattr(model, "config", None)
    is_one_of_two = hasattr(config, "get_text_config") and config.get_text_config() is not config
    if not is_one_of_two or getattr(config, "is_encoder_decoder", False):
        return None
    return _name_of(model, _layer(model, "get_decoder"))


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    """Where in the model a module is; None for the model itself and for what is not in it."""
    return next((name for name, module in model.named_modules() if name and module is wanted), None)


def _blocks_of(model: nn.Module, name: str) -> list[str]:
    return [f"{name}.{block}" for block in _longest_list(model.get_submodule(name))]


def _longest_list(model: nn.Module, without: str | None = None) -> list[str]:
    """Names of the modules of the longest list of like modules; lists inside another list's modules (experts) do not count, nor
    those inside the module `without`. Of two equally long, the later one, which is nearer the output."""
    best: list[str] = []
    for name, modules in _outermost_lists(model, ""):
        if without is not None and name.startswith(f"{without}."):
            continue
        if len({type(module) for module in modules}) == 1 and len(modules) >= max(len(best), 1):
            best = [f"{name}.{index}" for index in range(len(modules))]
    return best


def _outermost_lists(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, nn.ModuleList):
            yield path, child
        else:
            yield from _outermost_lists(child, path)
