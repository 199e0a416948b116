"""Makes a model directory of one of torchvision's classifiers, once per node.

Owns the forms `torchvision:resnet50` (the weights that torchvision publishes for it, from torch's own cache or the network) and
`torchvision:resnet50@/path/to/state.pth` (a state dict of the same names), and their conversion to safetensors, config.json and an
image processor. Called by `source.py`. A state dict is read with torch's restricted unpickler, which makes tensors and nothing
else.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

from tlcore.errors import ModelError
from tlcore.storage.shelf import node_shelf, shelved

SCHEME: Final = "torchvision:"
_TIMEOUT_S: Final = 5.0
_OLD_DENSE: Final = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""In the published files of DenseNet, whose layers have had names without that point since torchvision 0.3."""


def torchvision_directory(source: str, shelf: Path | None = None) -> Path:
    """The directory of a source `torchvision:<name>` or `torchvision:<name>@<file>`.

    Raises:
        ModelError: no such network, its weights cannot be had or belong to another one, or the shelf cannot be written.
    """
    from tlcore.models.families.torchvision_models import NOT_TAKEN, network_names

    name, _, given = source.removeprefix(SCHEME).partition("@")
    known = network_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        meant = f"did you mean {', '.join(near)}?" if near else "resnet50, vgg16_bn, efficientnet_b0, mobilenet_v2, ..."
        taken = " that can be taken: its classifier is not one linear layer" if name in NOT_TAKEN else ""
        raise ModelError(f"model source {source!r}: torchvision has no classifier {name!r}{taken}", hint=meant)
    file = Path(given).expanduser().absolute() if given else _published_file(source, name)
    if not file.is_file():
        raise ModelError(f"model source {source!r}: {file} is no file", hint="give a state dict saved by torch.save")
    stat = file.stat()
    content = hashlib.sha256(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:24]
    place = shelf or node_shelf("models")
    try:
        return shelved(place, f"torchvision-{name}-{content}", lambda folder: _convert(source, name, file, folder))
    except OSError as error:
        raise ModelError(
            f"model source {source!r}: cannot keep it in {place}: {error}", hint="free space there, or make it writable"
        ) from error


def _published(name: str) -> Any:
    from torchvision.models import get_model_weights

    return get_model_weights(name).DEFAULT


def _published_file(source: str, name: str) -> Path:
    """Where torch keeps what it downloads; downloaded now if it is not there, and its hash compared."""
    import torch

    url = str(_published(name).url)
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if file.is_file():
        return file
    hint = f"put the file there from a machine that has a network, or name one: {SCHEME}{name}@<file>"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT_S):
            file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rpartition("-")[2], progress=False)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"model source {source!r}: no {file}, and {url} cannot be had: {error}", hint=hint) from error
    return file


def _convert(source: str, name: str, file: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import BitImageProcessor

    from tlcore.models.families import torchvision_models as family
    from tlcore.models.families.convert import read_state_dict

    state = {_as_built(key): tensor for key, tensor in read_state_dict(file).items()}
    with torch.device("meta"):
        head = family.head_name(family.bare_network(name))
    classes = len(state[f"{head}.weight"]) if f"{head}.weight" in state else 0
    names = _published(name).meta["categories"] if classes == 1000 else [str(number) for number in range(classes or 2)]
    config = family.TorchvisionConfig(
        network=name, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    config.architectures = [family.TorchvisionForImageClassification.__name__]
    with torch.device("meta"):
        wanted = family.TorchvisionForImageClassification(config).state_dict()
    renamed = {_renamed(key, head): tensor.contiguous() for key, tensor in state.items()}
    _check(source, file, wanted, renamed)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    BitImageProcessor(**_published_pictures(name)).save_pretrained(folder)


def _published_pictures(name: str) -> dict[str, Any]:
    """What the published weights say of their pictures (EfficientNet's larger ones take larger)."""
    takes = _published(name).transforms()
    crop = takes.crop_size[0]
    return {
        "size": {"shortest_edge": takes.resize_size[0]},
        "crop_size": {"height": crop, "width": crop},
        "image_mean": list(takes.mean),
        "image_std": list(takes.std),
        "resample": {"bilinear": 2, "bicubic": 3}[takes.interpolation.value],
    }


def _as_built(key: str) -> str:
    return _OLD_DENSE.sub(r"\1\2", key)


def _renamed(key: str, head: str) -> str:
    return f"classifier{key.removeprefix(head)}" if key.startswith(f"{head}.") else f"backbone.network.{key}"


def _check(source: str, file: Path, wanted: dict[str, Any], there: dict[str, Any]) -> None:
    """The backbone is whole; a head may be missing."""
    for key, tensor in wanted.items():
        shape = list(there[key].shape) if key in there else None
        if shape != list(tensor.shape) and not (key.startswith("classifier.") and shape is None):
            found = "is missing" if shape is None else f"has shape {shape}, not {list(tensor.shape)}"
            raise ModelError(
                f"model source {source!r}: in {file}, {key.removeprefix('backbone.network.')} {found}",
                hint="the file belongs to another network",
            )
