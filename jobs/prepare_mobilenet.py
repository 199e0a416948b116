"""Put MobileNetV2 into the store as transformers has it, a source to start from: `model: {source: s3://tlcore/models/mobilenet-v2}`.

    python -m jobs.prepare_mobilenet --destination s3://tlcore/models/mobilenet-v2

Owns where the weights come from and what they are called there. They are those that the npm package nsfwjs (MIT) carries for
TensorFlow.js in eight bits, a MobileNetV2 of Keras (Sandler et al. 2018, arXiv:1801.04381) at full width; its archive is checked
against a pinned SHA-256. That package's own classifier, three layers on the pooled features, is left out: a task brings its head.
`SOURCE.json` is written last and holds the digests of what was written: where it matches, a second run changes nothing.
"""

from __future__ import annotations

import base64
import binascii
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jobs.fetch import ASSETS, fetch_by_npm
from jobs.prepared import Made, prepare
from jobs.tfjs import exported_value, read_weights
from tlcore.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from tlcore.models.families.convert import Renames

PACKAGE: Final = "nsfwjs"
VERSION: Final = "4.3.0"
SHA256: Final = "4496790efc9bdc6f3e85a826a8e482c1fa1e9db4b3d18c095e98cc0c73cfb12f"
MODEL_FOLDER: Final = "package/dist/models/mobilenet_v2"
SIDE: Final = 224
"""Pixels of the pictures that it was trained on."""
_BLOCKS: Final = 16
_PARTS: Final = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
# Raise when the conversion changes, so that what was made before is made again.
_CUT: Final = 1


def main(arguments: Sequence[str] | None = None) -> int:
    return prepare("prepare_mobilenet", str(__doc__), _source(), make, ASSETS, arguments)


def make(assets: Path) -> Made:
    """All that is left in the store. Raises DataError, ModelError."""
    archive = fetch_by_npm(assets, PACKAGE, VERSION, SHA256)
    with tempfile.TemporaryDirectory() as directory:
        write_model(read_archive(archive)[1], archive, Path(directory))
        files = {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())}
    return files, f"MobileNetV2 of {PACKAGE}@{VERSION}, in {', '.join(files)}"


def read_archive(archive: Path) -> tuple[Any, dict[str, npt.NDArray[np.float32]]]:
    """(Keras' description of the network, its weights by Keras' names) from the package. Raises DataError."""
    with tarfile.open(archive) as package:

        def script(name: str) -> Any:
            member = f"{MODEL_FOLDER}/{name}.min.js"
            try:
                file = package.extractfile(member)
            except KeyError:
                file = None
            if file is None:
                raise DataError(f"{archive.name} has no {member}", hint="its layout is another one than it was")
            return exported_value(file.read().decode("utf-8"), f"{archive.name}: {member}")

        model = script("model")
        if not isinstance(model, Mapping) or not {"modelTopology", "weightsManifest"} <= model.keys():
            raise DataError(
                f"{archive.name}: {MODEL_FOLDER}/model.min.js holds no model", hint="its layout is another one"
            )
        return model["modelTopology"], read_weights(
            model["weightsManifest"], lambda path: _bytes_of(script(path), path)
        )


def write_model(weights: Mapping[str, npt.NDArray[np.float32]], archive: Path, directory: Path) -> None:
    """config.json, model.safetensors and preprocessor_config.json. Raises ModelError where the weights are another network's.

    Args:
        archive: where the weights come from, for the message.
    """
    from transformers import MobileNetV2Config, MobileNetV2ImageProcessor, MobileNetV2Model

    from tlcore.models import quiet
    from tlcore.models.families.convert import load_all

    # Keras pads what it halves at the end alone, as TensorFlow does. The dropout of transformers' own configuration is 0.8, which
    # is the share that TensorFlow's training kept.
    config = MobileNetV2Config(image_size=SIDE, tf_padding=True, layer_norm_eps=1e-3, classifier_dropout_prob=0.2)
    # As nsfwjs does: whole pictures, values from 0 to 1. With the -1 to 1 of Keras' own MobileNetV2 a probe of the features is four
    # to five points worse, on six kinds of photos.
    pictures = MobileNetV2ImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, do_rescale=True, do_normalize=False
    )
    with quiet():
        model = MobileNetV2Model(config)
        load_all(model, as_transformers(weights, archive), archive)
        for each in (model, pictures):
            each.save_pretrained(directory)


def as_transformers(weights: Mapping[str, npt.NDArray[np.float32]], archive: Path) -> dict[str, Tensor]:
    """The tensors by transformers' names and in torch's order of dimensions. Raises ModelError for a name that is not known."""
    import torch

    from tlcore.models.families.convert import renamed

    # Kernels: height, width, inputs, outputs; of a depthwise one, height, width, channels, 1.
    orders = {"kernel": (3, 2, 0, 1), "depthwise_kernel": (2, 3, 0, 1)}
    turned = {
        name: torch.from_numpy(
            values.transpose(orders[name.rpartition("/")[2]]).copy() if values.ndim == 4 else values.copy()
        )
        for name, values in weights.items()
    }
    state = renamed(renamed(turned, _layers(), archive), _TENSORS, archive)
    norms = [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]
    # Keras counts no batches.
    return state | {f"{name}num_batches_tracked": torch.tensor(0) for name in norms}


def _layers() -> Renames:
    """From Keras' names of layers; its blocks count from 1, the one before them is part of transformers' stem."""
    named = {"Conv1": "conv_stem.first_conv", "Conv_1": "conv_1x1"}
    named |= {f"expanded_conv_{part}": f"conv_stem.{_PARTS[part]}" for part in ("depthwise", "project")}
    named |= {
        f"block_{at + 1}_{part}": f"layer.{at}.{module}" for at in range(_BLOCKS) for part, module in _PARTS.items()
    }
    norms = {"Conv1": "bn_Conv1", "Conv_1": "Conv_1_bn"}
    return (
        (r"dense_\d/.*", ""),
        *((rf"{layer}/(.*)", rf"{module}.convolution/\1") for layer, module in named.items()),
        *((rf"{norms.get(at, f'{at}_BN')}/(.*)", rf"{module}.normalization/\1") for at, module in named.items()),
    )


_TENSORS: Final = (
    (r"(.*)/(?:depthwise_)?kernel", r"\1.weight"),
    (r"(.*)/gamma", r"\1.weight"),
    (r"(.*)/beta", r"\1.bias"),
    (r"(.*)/moving_mean", r"\1.running_mean"),
    (r"(.*)/moving_variance", r"\1.running_var"),
)


def _bytes_of(content: Any, path: str) -> bytes:
    """Of a shard that a script exports as base64."""
    try:
        return base64.b64decode(content, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise DataError(f"shard {path} is no base64: {error}", hint="its layout is another one than it was") from error


def _source() -> dict[str, Any]:
    return {
        "made_from": {f"{PACKAGE}@{VERSION}": SHA256},
        "cut": _CUT,
        "cite": "Sandler et al., MobileNetV2, CVPR 2018; weights: nsfwjs, MIT",
    }


if __name__ == "__main__":
    sys.exit(main())
