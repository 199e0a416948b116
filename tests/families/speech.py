"""Speech families: Wav2Vec2 and HuBERT, at the size of a test, on tones that spell words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.families.text import save, write_rows

RATE_HZ = 4000
TONES_HZ = {"a": 300.0, "b": 700.0, "c": 1300.0, " ": 0.0}
LETTER_S = 0.05
SAMPLES = 32


def spell(text: str, letter_s: float = LETTER_S) -> Any:
    """A tone for each letter, silence for a space: [frames], -1 to 1."""
    times = np.arange(round(letter_s * RATE_HZ)) / RATE_HZ
    sounds = [0.5 * np.sin(2 * np.pi * TONES_HZ[letter] * times) for letter in text]
    return np.concatenate(sounds).astype(np.float32)


def write_sounds(home: Path, texts: list[str]) -> list[str]:
    """A file for each text; their paths below `home`."""
    import soundfile

    (home / "clips").mkdir(exist_ok=True)
    names = [f"clips/{number}.wav" for number in range(len(texts))]
    for name, text in zip(names, texts, strict=True):
        soundfile.write(home / name, spell(text), RATE_HZ)
    return names


def words(count: int = SAMPLES) -> list[str]:
    """Texts of differing length over three letters."""
    syllables = ("ab", "ca", "bc", "ba")
    return [" ".join(syllables[(number * 5 + k) % 4] for k in range(1 + number % 3)) for number in range(count)]


def save_waveform_extractor(home: Path, mask: bool = True) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    Wav2Vec2FeatureExtractor(sampling_rate=RATE_HZ, return_attention_mask=mask).save_pretrained(home)


WAVEFORM = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 4),
    "conv_stride": (8, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "mask_time_prob": 0.0,
    "initializer_range": 0.2,
    **dict.fromkeys(
        (
            "hidden_dropout",
            "attention_dropout",
            "activation_dropout",
            "feat_proj_dropout",
            "feat_quantizer_dropout",
            "final_dropout",
            "layerdrop",
        ),
        0.0,
    ),
}


def audio_classification(model_class: str, config_class: str) -> Callable[[Path], dict[str, Any]]:
    def make(home: Path) -> dict[str, Any]:
        import transformers

        save_waveform_extractor(home)
        config = getattr(transformers, config_class)(**WAVEFORM, classifier_proj_size=8)
        source = save(home, config, model_class)
        texts = [("ab", "bca", "cc", "a")[number % 4] for number in range(SAMPLES)]
        rows = [{"audio": name, "label": text[0]} for name, text in zip(write_sounds(home, texts), texts, strict=True)]
        return {
            "model": {"source": source},
            "data": {"train": write_rows(home / "rows.jsonl", rows), "max_seconds": 2.0},
            "predict": [str(home / "clips/0.wav")],
        }

    return make


def recognition(model_class: str, config_class: str) -> Callable[[Path], dict[str, Any]]:
    """CTC with a vocabulary of the transcripts' own characters."""

    def make(home: Path) -> dict[str, Any]:
        import transformers

        save_waveform_extractor(home)
        source = save(home, getattr(transformers, config_class)(**WAVEFORM), model_class)
        return {
            "model": {"source": source},
            "data": {"train": write_spoken(home), "max_seconds": 2.0, "validation": 0.2},
            "predict": [str(home / "clips/1.wav"), {"audio": str(home / "clips/0.wav"), "text": words()[0]}],
        }

    return make


def spectrogram_recognition(name: str, **settings: Any) -> Callable[[Path], dict[str, Any]]:
    """CTC over log spectrograms, by one of our own families."""

    def make(home: Path) -> dict[str, Any]:
        import importlib

        import torch

        from tlcore.models.families.spectrogram import SpectrogramFeatureExtractor

        module = importlib.import_module(f"tlcore.models.families.{name.lower()}")
        extractor = SpectrogramFeatureExtractor(sampling_rate=RATE_HZ, window_s=0.008, step_s=0.004)
        extractor.save_pretrained(home)
        config = getattr(module, f"{name}Config")(feature_size=extractor.feature_size, hidden_size=16, **settings)
        torch.manual_seed(3)
        getattr(module, f"{name}Model")(config).save_pretrained(home)
        return {
            "model": {"source": str(home)},
            "data": {"train": write_spoken(home), "max_seconds": 2.0, "validation": 0.2},
            "predict": [str(home / "clips/1.wav"), {"audio": str(home / "clips/0.wav"), "text": words()[0]}],
        }

    return make


def pretraining(home: Path) -> dict[str, Any]:
    """Sounds alone, some steps of which are hidden."""
    from transformers import Wav2Vec2Config

    save_waveform_extractor(home)
    codes = {"num_codevectors_per_group": 8, "codevector_dim": 8, "proj_codevector_dim": 8, "num_negatives": 10}
    config = Wav2Vec2Config(**{**WAVEFORM, **codes, "mask_time_prob": 0.1, "mask_time_length": 2})
    write_sounds(home, [f"{text} {text}" for text in words()])
    return {
        "model": {"source": save(home, config, "Wav2Vec2ForPreTraining")},
        "data": {"train": str(home / "clips"), "max_seconds": 2.0, "mask_probability": 0.4},
        "predict": [str(home / "clips/1.wav")],
    }


def write_spoken(home: Path, column: str = "text") -> str:
    """Sounds with their texts."""
    texts = words()
    rows = [{"audio": name, column: text} for name, text in zip(write_sounds(home, texts), texts, strict=True)]
    return write_rows(home / "rows.jsonl", rows)


SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>")


def save_whisper_tokenizer(home: Path) -> Any:
    """One token for each letter, for the blank, and for what the prompt is made of."""
    from transformers import WhisperTokenizer

    signs = [*"abc", chr(0x120)]
    tokenizer = WhisperTokenizer(vocab={sign: number for number, sign in enumerate((*signs, *SPECIAL))}, merges=[])
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIAL[1:])})
    tokenizer.save_pretrained(home)
    return tokenizer


def whisper(column: str) -> Callable[[Path], dict[str, Any]]:
    def make(home: Path) -> dict[str, Any]:
        import transformers

        tokenizer = save_whisper_tokenizer(home)
        transformers.WhisperFeatureExtractor(
            feature_size=8, sampling_rate=RATE_HZ, hop_length=40, chunk_length=1, n_fft=160
        ).save_pretrained(home)
        config = transformers.WhisperConfig(
            vocab_size=len(tokenizer),
            num_mel_bins=8,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            d_model=16,
            max_source_positions=50,
            max_target_positions=24,
            init_std=0.2,
            pad_token_id=4,
            bos_token_id=4,
            eos_token_id=4,
            decoder_start_token_id=5,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
        source = save(home, config, "WhisperForConditionalGeneration")
        data = {"train": write_spoken(home, column), "max_seconds": 1.0, "validation": 0.2, "max_target_length": 12}
        return {"model": {"source": source}, "data": data, "predict": [str(home / "clips/1.wav")]}

    return make


MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "wav2vec2/audio-classification": audio_classification("Wav2Vec2Model", "Wav2Vec2Config"),
    "hubert/audio-classification": audio_classification("HubertModel", "HubertConfig"),
    "wav2vec2/speech-recognition": recognition("Wav2Vec2Model", "Wav2Vec2Config"),
    "hubert/speech-recognition": recognition("HubertModel", "HubertConfig"),
    "deepspeech/speech-recognition": spectrogram_recognition("DeepSpeech", context=2, dropout=0.0),
    "deepspeech2/speech-recognition": spectrogram_recognition(
        "DeepSpeech2", convolutions=[[4, 5, 5, 2, 2]], num_hidden_layers=2, cell="gru"
    ),
    "wav2vec2/audio-pretraining": pretraining,
    "whisper/speech-recognition": whisper("text"),
    "whisper/speech-translation": whisper("target"),
}
