"""The families that `python -m jobs.bench.step --all` times: random models of realistic proportions, and data to train them on.

Owns the table, sizes and samples. A model is as deep and wide, against its vocabulary and its inputs, as a small member of its
family is, and small enough for a step of 0.1 to 0.5 s on one CPU core. Contents are noise: only time is measured. Called by
`step_all.py`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from jobs.bench.step_blocks import WORDS, write_samples

Sections = dict[str, Any]
"""Of a recipe: what differs from family to family."""
Settings = Mapping[str, Any]
"""What a family's configuration class is given."""

VOCABULARY: Final = 8000
RATE_HZ: Final = 16000
SECONDS: Final = (1.0, 3.0)
PICTURE_PIXELS: Final = 160
KINDS: Final = ("first", "second")
END: Final = "[SEP]"


@dataclass(frozen=True)
class Family:
    """`name` is family/task as `tlcore families` has it. `make(home, samples)` writes source and data below a directory and gives
    the recipe's sections. `trainer`: whether Hugging Face Trainer can train it; else bare DeepSpeed is the only peer."""

    name: str
    make: Callable[[Path, int], Sections]
    batch: int = 16
    trainer: bool = True

    @property
    def task(self) -> str:
        return self.name.partition("/")[2]


def save(home: Path, config: Any, model_class: str, *processors: Any) -> str:
    """A random model, and what makes its inputs, as a pre-trained source."""
    import transformers

    return save_own(home, getattr(transformers, model_class), config, *processors)


def save_own(home: Path, model: Any, config: Any, *processors: Any) -> str:
    """The same of a model's class."""
    import torch

    torch.manual_seed(0)
    model(config).save_pretrained(home)
    for processor in processors:
        processor.save_pretrained(home)
    return str(home)


def make_tokenizer(own_marks: bool) -> Any:
    """Whole words, most of which no text has. `own_marks`: texts begin and end with marks, as encoders read them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", END, "[MASK]"]
    words = [*special, *WORDS]
    words += [f"word{number}" for number in range(VOCABULARY - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if own_marks:
        ends = [("[CLS]", special.index("[CLS]")), (END, special.index(END))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"[CLS] $A {END}", special_tokens=ends)
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": END, "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, eos_token=END, **marks)


def texts(
    model_class: str, config_class: str, settings: Settings, home: Path, samples: int, own_marks: bool = True
) -> Sections:
    """Any family of transformers that reads texts."""
    import transformers

    marks = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = getattr(transformers, config_class)(**marks, **settings)
    source = save(home / "model", config, model_class, make_tokenizer(own_marks))
    return {"model": {"source": source}, "data": text_data(home, samples)}


def text_data(home: Path, samples: int) -> Sections:
    write_samples(home / "rows.jsonl", samples)
    return {"train": str(home / "rows.jsonl"), "max_length": 64}


def pictures(model_class: str, config_class: str, settings: Settings, home: Path, samples: int) -> Sections:
    import transformers

    source = save(
        home / "model", getattr(transformers, config_class)(**settings), model_class, picture_processor(settings)
    )
    return {"model": {"source": source}, "data": {"train": write_pictures(home / "pictures", samples)}}


def picture_processor(settings: Settings) -> Any:
    from transformers import ViTImageProcessor

    side = settings.get("image_size", PICTURE_PIXELS)
    return ViTImageProcessor(size={"height": side, "width": side})


def noise(number: int) -> Any:
    """[height, width, 3] of a picture."""
    import numpy as np

    side = PICTURE_PIXELS + number % 40
    return np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)


def write_pictures(home: Path, samples: int) -> str:
    """A folder for each class."""
    from PIL import Image

    for number in range(samples):
        place = home / KINDS[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(number)).save(place / f"{number}.jpg")
    return str(home)


def masks(home: Path, samples: int) -> Sections:
    """Segformer, four times smaller in its width than B0 is."""
    import numpy as np
    import transformers
    from PIL import Image

    sizes = {"height": 128, "width": 128}
    config = transformers.SegformerConfig(hidden_sizes=[16, 32, 80, 128], decoder_hidden_size=128)
    source = save(home / "model", config, "SegformerModel", transformers.SegformerImageProcessor(size=sizes))
    rows = []
    for number in range(samples):
        pixels = noise(number)
        Image.fromarray(pixels).save(home / f"{number}.jpg")
        Image.fromarray((pixels[..., 0] > 127).astype(np.uint8)).save(home / f"{number}.png")
        rows.append({"image": f"{number}.jpg", "mask": f"{number}.png"})
    return {"model": {"source": source}, "data": {"train": write_rows(home, rows)}}


def videos(settings: Settings, home: Path, samples: int) -> Sections:
    """VideoMAE on array files of eight frames."""
    import numpy as np
    import transformers

    side = settings["image_size"]
    processor = transformers.VideoMAEImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    source = save(home / "model", transformers.VideoMAEConfig(**settings), "VideoMAEModel", processor)
    for number in range(samples):
        place = home / "videos" / KINDS[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        frames = np.random.default_rng(number).integers(0, 255, (settings["num_frames"], side, side, 3), dtype=np.uint8)
        np.save(place / f"{number}.npy", frames)
    return {"model": {"source": source}, "data": {"train": str(home / "videos")}}


def write_rows(home: Path, rows: list[dict[str, Any]]) -> str:
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(home / "rows.jsonl")


def write_sounds(home: Path, samples: int) -> Sections:
    """Noise of one to three seconds, and what is said in it: four letters to the second."""
    import numpy as np
    import soundfile

    rows = []
    for number in range(samples):
        draw = random.Random(number)
        seconds = draw.uniform(*SECONDS)
        sound = np.random.default_rng(number).normal(0, 0.1, round(seconds * RATE_HZ))
        soundfile.write(home / f"{number}.wav", sound.astype(np.float32), RATE_HZ)
        rows.append({"audio": f"{number}.wav", "text": "".join(draw.choices("abc", k=round(4 * seconds)))})
    return {"train": write_rows(home, rows), "max_seconds": SECONDS[1]}


WAVEFORM: Final[Settings] = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "conv_dim": (64,) * 7,
    "num_conv_pos_embedding_groups": 16,
    # A layer left out at random would be left out on one side alone.
    "layerdrop": 0.0,
}


def waveforms(model_class: str, config_class: str, home: Path, samples: int) -> Sections:
    """CTC over the samples themselves; four layers instead of twelve, a quarter of the base model's widths."""
    import transformers

    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE_HZ, return_attention_mask=True)
    settings = {**WAVEFORM, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
    source = save(home / "model", getattr(transformers, config_class)(**settings), model_class, extractor)
    return {"model": {"source": source}, "data": write_sounds(home, samples)}


def whisper(home: Path, samples: int) -> Sections:
    """Tiny's widths halved; its decoder's vocabulary as far as a small one goes; windows of three seconds."""
    import transformers

    marks = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    signs = [*"abc", chr(0x120), *marks]
    signs += [f"word{number}" for number in range(VOCABULARY - len(signs))]
    tokenizer = transformers.WhisperTokenizer(vocab={sign: at for at, sign in enumerate(signs)}, merges=[])
    tokenizer.add_special_tokens({"extra_special_tokens": marks[1:]})
    extractor = transformers.WhisperFeatureExtractor(sampling_rate=RATE_HZ, chunk_length=round(SECONDS[1]))
    end = signs.index(marks[0])
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=192,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=768,
        decoder_ffn_dim=768,
        max_source_positions=round(50 * SECONDS[1]),
        max_target_positions=448,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end + 1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    source = save(home / "model", config, "WhisperForConditionalGeneration", tokenizer, extractor)
    return {"model": {"source": source}, "data": write_sounds(home, samples)}


def elmo(home: Path, samples: int) -> Sections:
    from tlcore.models.families.elmo import ElmoConfig, ElmoModel
    from tlcore.models.families.elmo_tokens import ElmoTokenizer

    config = ElmoConfig(filters=[[1, 32], [2, 32], [3, 64], [4, 128]], projection_size=128, lstm_size=256)
    source = save_own(home / "model", ElmoModel, config, ElmoTokenizer())
    return {"model": {"source": source}, "data": text_data(home, samples)}


def transfo_xl(home: Path, samples: int) -> Sections:
    from tlcore.models.families.transfo_xl import TransfoXLConfig, TransfoXLForCausalLM

    sizes = {"d_model": 256, "d_embed": 256, "n_head": 4, "d_head": 64, "d_inner": 1024, "n_layer": 4, "mem_len": 64}
    config = TransfoXLConfig(vocab_size=VOCABULARY, cutoffs=[1000, 4000], div_val=2, eos_token_id=3, **sizes)
    source = save_own(home / "model", TransfoXLForCausalLM, config, make_tokenizer(False))
    return {"model": {"source": source}, "data": text_data(home, samples)}


def deepspeech2(home: Path, samples: int) -> Sections:
    from tlcore.models.families.deepspeech2 import DeepSpeech2Config, DeepSpeech2Model
    from tlcore.models.families.spectrogram import SpectrogramFeatureExtractor

    extractor = SpectrogramFeatureExtractor(sampling_rate=RATE_HZ)
    config = DeepSpeech2Config(feature_size=extractor.feature_size, hidden_size=128, num_hidden_layers=2)
    source = save_own(home / "model", DeepSpeech2Model, config, extractor)
    return {"model": {"source": source}, "data": write_sounds(home, samples)}


def efficientnet_lite(home: Path, samples: int) -> Sections:
    from tlcore.models.families.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel

    source = save_own(
        home / "model", EfficientNetLiteModel, EfficientNetLiteConfig(width=0.5), picture_processor({"image_size": 128})
    )
    return {"model": {"source": source}, "data": {"train": write_pictures(home / "pictures", samples)}}


T5: Final[Settings] = {
    "d_model": 256,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
ENCODER: Final[Settings] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
DECODER: Final[Settings] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
}
BART: Final[Settings] = {
    "d_model": 256,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 1024,
    "decoder_ffn_dim": 1024,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": None,
}
VIT: Final[Settings] = {**ENCODER, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}

FAMILIES: Final[tuple[Family, ...]] = (
    Family("bert/text-classification", partial(texts, "BertModel", "BertConfig", ENCODER)),
    Family("roberta/text-classification", partial(texts, "RobertaModel", "RobertaConfig", ENCODER)),
    Family(
        "distilbert/text-classification",
        partial(
            texts, "DistilBertModel", "DistilBertConfig", {"dim": 256, "n_layers": 4, "n_heads": 4, "hidden_dim": 1024}
        ),
    ),
    Family("bert/masked-language-modeling", partial(texts, "BertForMaskedLM", "BertConfig", ENCODER)),
    Family("t5/summarization", partial(texts, "T5ForConditionalGeneration", "T5Config", T5), 8),
    Family("bart/summarization", partial(texts, "BartForConditionalGeneration", "BartConfig", BART), 8),
    Family("marian/translation", partial(texts, "MarianMTModel", "MarianConfig", BART), 8),
    Family(
        "gpt2/text-generation",
        partial(texts, "GPT2Model", "GPT2Config", {"n_embd": 256, "n_layer": 4, "n_head": 4}, own_marks=False),
    ),
    Family(
        "llama/text-generation",
        partial(texts, "LlamaForCausalLM", "LlamaConfig", {**DECODER, "intermediate_size": 704}, own_marks=False),
    ),
    Family(
        "qwen3/text-generation",
        partial(texts, "Qwen3ForCausalLM", "Qwen3Config", {**DECODER, "intermediate_size": 768}, own_marks=False),
    ),
    Family(
        "gpt-oss/text-generation",
        partial(
            texts,
            "GptOssForCausalLM",
            "GptOssConfig",
            {**DECODER, "intermediate_size": 256, "num_local_experts": 8, "num_experts_per_tok": 2},
            own_marks=False,
        ),
    ),
    Family(
        "vit/image-classification",
        partial(pictures, "ViTModel", "ViTConfig", {**VIT, "image_size": 128, "patch_size": 16}),
        16,
    ),
    Family(
        "resnet/image-classification",
        partial(
            pictures,
            "ResNetModel",
            "ResNetConfig",
            {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2], "layer_type": "basic"},
        ),
        8,
    ),
    Family(
        "convnext/image-classification",
        partial(
            pictures, "ConvNextModel", "ConvNextConfig", {"hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 4, 2]}
        ),
        8,
    ),
    Family(
        "swin/image-classification",
        partial(
            pictures,
            "SwinModel",
            "SwinConfig",
            {"image_size": 112, "embed_dim": 48, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "window_size": 7},
        ),
        8,
    ),
    Family("segformer/image-segmentation", masks, 8),
    Family(
        "videomae/video-classification", partial(videos, {**VIT, "image_size": 64, "patch_size": 16, "num_frames": 8})
    ),
    Family("wav2vec2/speech-recognition", partial(waveforms, "Wav2Vec2Model", "Wav2Vec2Config"), 4),
    Family("hubert/speech-recognition", partial(waveforms, "HubertModel", "HubertConfig"), 4),
    Family("whisper/speech-recognition", whisper, 4),
    Family("elmo/text-classification", elmo, trainer=False),
    Family("transfo-xl/text-generation", transfo_xl, trainer=False),
    Family("deepspeech2/speech-recognition", deepspeech2, 4, trainer=False),
    Family("efficientnet-lite/image-classification", efficientnet_lite, 8, trainer=False),
)
