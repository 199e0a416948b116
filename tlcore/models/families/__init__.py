"""Model families that no kept library has any more, as published, as transformers models of our own.

Each module owns one family: configuration, backbone, heads, and the source it follows. `convert.py` brings published weights into
their form. `register_families` makes transformers' Auto classes know them, so that a directory whose config.json names one is a
model source like any other; `source.py` and `build.py` call it where such a one is met.
Importing this package costs neither torch nor transformers.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

PREFIX = "tlcore-"
"""What the model types of these families begin with."""


def is_own(model_type: object) -> bool:
    """Whether a configuration's `model_type` is one of these families'."""
    return isinstance(model_type, str) and model_type.startswith(PREFIX)


def register_for(directory: Path) -> None:
    """Register the families if the directory's config.json names one of them; an unreadable file is left to transformers."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return
    if isinstance(config, dict) and is_own(config.get("model_type")):
        register_families()


@cache
def register_families() -> None:
    """Make AutoConfig and the AutoModelFor... classes know every family of this room. Once per process."""
    _register_torchvision()
    _register_one_class()
    _register_speech()
    _register_images()
    _register_text()


def _register(config: Any, models: dict[Any, Any]) -> None:
    from transformers import AutoConfig

    AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto, model in models.items():
        auto.register(config, model, exist_ok=True)


def _register_torchvision() -> None:
    from transformers import (
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForObjectDetection,
        AutoModelForSemanticSegmentation,
    )

    from tlcore.models.families import torchvision_models as networks

    _register(
        networks.TorchvisionConfig,
        {
            AutoModel: networks.TorchvisionModel,
            AutoModelForImageClassification: networks.TorchvisionForImageClassification,
            AutoModelForObjectDetection: networks.TorchvisionForObjectDetection,
            AutoModelForSemanticSegmentation: networks.TorchvisionForSemanticSegmentation,
        },
    )


def _register_one_class() -> None:
    from transformers import AutoModel

    from tlcore.models.families import one_class

    _register(one_class.OneClassConfig, {AutoModel: one_class.OneClassModel})


def _register_speech() -> None:
    from transformers import AutoFeatureExtractor, AutoModel, AutoModelForCTC

    from tlcore.models.families import deepspeech, deepspeech2
    from tlcore.models.families.spectrogram import SpectrogramFeatureExtractor

    _register(
        deepspeech.DeepSpeechConfig,
        {AutoModel: deepspeech.DeepSpeechModel, AutoModelForCTC: deepspeech.DeepSpeechForCTC},
    )
    _register(
        deepspeech2.DeepSpeech2Config,
        {AutoModel: deepspeech2.DeepSpeech2Model, AutoModelForCTC: deepspeech2.DeepSpeech2ForCTC},
    )
    for config in (deepspeech.DeepSpeechConfig, deepspeech2.DeepSpeech2Config):
        AutoFeatureExtractor.register(config, SpectrogramFeatureExtractor, exist_ok=True)


def _register_images() -> None:
    from transformers import (
        AutoBackbone,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForObjectDetection,
        AutoModelForSemanticSegmentation,
    )

    from tlcore.models.families import efficientnet_lite as lite
    from tlcore.models.families import yolo

    _register(
        lite.EfficientNetLiteConfig,
        {
            AutoModel: lite.EfficientNetLiteModel,
            AutoBackbone: lite.EfficientNetLiteBackbone,
            AutoModelForImageClassification: lite.EfficientNetLiteForImageClassification,
            AutoModelForObjectDetection: lite.EfficientNetLiteForObjectDetection,
            AutoModelForSemanticSegmentation: lite.EfficientNetLiteForSemanticSegmentation,
        },
    )
    _register(
        yolo.YoloxConfig,
        {AutoModel: yolo.YoloxModel, AutoModelForObjectDetection: yolo.YoloxForObjectDetection},
    )


def _register_text() -> None:
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )

    from tlcore.models.families import elmo, transfo_xl
    from tlcore.models.families.elmo_tokens import ElmoTokenizer

    _register(
        elmo.ElmoConfig,
        {
            AutoModel: elmo.ElmoModel,
            AutoModelForSequenceClassification: elmo.ElmoForSequenceClassification,
            AutoModelForTokenClassification: elmo.ElmoForTokenClassification,
        },
    )
    AutoTokenizer.register(elmo.ElmoConfig, tokenizer_class=ElmoTokenizer, exist_ok=True)
    _register(
        transfo_xl.TransfoXLConfig,
        {
            AutoModel: transfo_xl.TransfoXLModel,
            AutoModelForCausalLM: transfo_xl.TransfoXLForCausalLM,
            AutoModelForSequenceClassification: transfo_xl.TransfoXLForSequenceClassification,
        },
    )
