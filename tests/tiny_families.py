"""One tiny model of each head of `tlcore/models/families`, with a batch of four samples: what the tests on real ranks train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Made = tuple[Any, dict[str, torch.Tensor]]


def deepspeech() -> Made:
    from tlcore.models.families.deepspeech import DeepSpeechConfig, DeepSpeechForCTC

    return DeepSpeechForCTC(
        DeepSpeechConfig(feature_size=9, context=2, hidden_size=7, vocab_size=5, dropout=0.0)
    ), _speech()


def deepspeech2() -> Made:
    from tlcore.models.families.deepspeech2 import DeepSpeech2Config, DeepSpeech2ForCTC

    sizes = {
        "feature_size": 9,
        "convolutions": [[3, 3, 5, 2, 2]],
        "hidden_size": 7,
        "num_hidden_layers": 2,
        "vocab_size": 5,
    }
    return DeepSpeech2ForCTC(DeepSpeech2Config(**sizes, cell="gru")), _speech()


def row_convolution() -> Made:
    from tlcore.models.families.deepspeech2 import DeepSpeech2Config, DeepSpeech2ForCTC

    sizes = {
        "feature_size": 9,
        "convolutions": [[3, 9, 5, 1, 2]],
        "hidden_size": 7,
        "num_hidden_layers": 2,
        "vocab_size": 5,
    }
    return DeepSpeech2ForCTC(DeepSpeech2Config(**sizes, bidirectional=False, row_context=2)), _speech()


def _speech() -> dict[str, torch.Tensor]:
    return {
        "input_features": torch.randn(4, 14, 9),
        "attention_mask": (torch.arange(14) < torch.tensor([14, 9, 12, 11])[:, None]).long(),
        "labels": torch.tensor([[1, 2, 2], [4, -100, -100], [3, 1, -100], [2, -100, -100]]),
    }


def efficientnet_lite() -> Made:
    from tlcore.models.families.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteForImageClassification

    config = EfficientNetLiteConfig(width=0.1, num_labels=3, dropout=0.0, drop_connect=0.0)
    batch = {"pixel_values": torch.randn(4, 3, 64, 64), "labels": torch.tensor([0, 2, 1, 1])}
    return EfficientNetLiteForImageClassification(config), batch


def _elmo(head: str) -> Made:
    from tlcore.models.families import elmo
    from tlcore.models.families.elmo_tokens import ElmoTokenizer

    sizes = {"filters": [[1, 3], [2, 4]], "character_size": 4, "projection_size": 6, "lstm_size": 7}
    config = elmo.ElmoConfig(**sizes, max_characters_per_token=8, dropout=0.0, num_labels=3)
    texts = ["a good film", "so bad", "why", "no one knows"]
    batch = dict(ElmoTokenizer(max_characters_per_token=8)(texts, padding=True, return_tensors="pt"))
    return getattr(elmo, f"ElmoFor{head}Classification")(config), batch


def elmo_sequence() -> Made:
    model, batch = _elmo("Sequence")
    return model, {**batch, "labels": torch.tensor([0, 1, 2, 2])}


def elmo_token() -> Made:
    model, batch = _elmo("Token")
    return model, {**batch, "labels": torch.tensor([[0, 1, 2], [2, 1, -100], [1, -100, -100], [0, 0, 1]])}


def _transfo_xl() -> Any:
    from tlcore.models.families.transfo_xl import TransfoXLConfig

    sizes = {"vocab_size": 13, "cutoffs": [4, 9], "d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 3, "d_inner": 10}
    return TransfoXLConfig(**sizes, div_val=2, n_layer=2, mem_len=6, dropout=0.0, num_labels=3, init_std=0.2)


def transfo_xl() -> Made:
    """The first two texts have frequent words alone: the ranks' words lie in other buckets."""
    from tlcore.models.families.transfo_xl import TransfoXLForCausalLM

    ids = torch.cat([torch.randint(0, 4, (2, 6)), torch.randint(4, 13, (2, 6))])
    return TransfoXLForCausalLM(_transfo_xl()), {"input_ids": ids, "labels": ids}


def transfo_xl_shared() -> Made:
    """One table for all buckets, the position biases shared by all layers."""
    from tlcore.models.families.transfo_xl import TransfoXLForSequenceClassification

    config = _transfo_xl()
    config.div_val, config.untie_r = 1, False
    batch = {"input_ids": torch.randint(0, 13, (4, 6)), "labels": torch.tensor([0, 1, 2, 1])}
    return TransfoXLForSequenceClassification(config), batch


def yolox() -> Made:
    """One image has no object, the images of the other rank have some."""
    from tlcore.models.families.yolo import YoloxConfig, YoloxForObjectDetection

    objects = [[[0.5, 0.5, 0.6, 0.5], [0.2, 0.3, 0.2, 0.2]], [], [[0.4, 0.6, 0.5, 0.7]], [[0.7, 0.7, 0.3, 0.3]]]
    labels = [{"class_labels": torch.arange(len(each)), "boxes": torch.tensor(each).view(-1, 4)} for each in objects]
    return YoloxForObjectDetection(YoloxConfig(width=0.125, num_labels=3)), {
        "pixel_values": torch.randn(4, 3, 64, 64),
        "labels": labels,
    }


FAMILIES: dict[str, Callable[[], Made]] = {
    made.__name__: made
    for made in (
        *(deepspeech, deepspeech2, row_convolution, efficientnet_lite),
        *(elmo_sequence, elmo_token, transfo_xl, transfo_xl_shared, yolox),
    )
}
