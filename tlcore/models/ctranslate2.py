"""Whisper weights in CTranslate2's format, brought once into a directory that is a model source like any other.

Owns reading that format and the names of its Whisper. Called by `jobs/prepare_speech.py`.

A `model.bin` of version 6 is: version, name of the specification, its revision, count of variables; of each its name, shape, type
and bytes; then aliases. Numbers are little-endian, names begin with their length and end in a zero byte.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from tlcore.errors import ModelError

Variables = dict[str, npt.NDArray[Any]]

_TYPES: Final = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_VERSION: Final = 6
_SPECIFICATION: Final = "WhisperSpec"
_ENGLISH_TOKENS: Final = 51864
_HEAD_SIZE: Final = 64
"""Of every Whisper's attention heads."""
_SPECIAL: Final = {
    "decoder_start_token_id": "<|startoftranscript|>",
    "eos_token_id": "<|endoftext|>",
    "pad_token_id": "<|endoftext|>",
    "bos_token_id": "<|endoftext|>",
    "no_timestamps_token_id": "<|notimestamps|>",
    "prev_sot_token_id": "<|startofprev|>",
}


def convert_whisper(source: Path, directory: Path) -> None:
    """Write config.json, model.safetensors, generation settings, tokenizer and feature extractor of a Whisper into `directory`.

    Args:
        source: directory with CTranslate2's model.bin, config.json and tokenizer.json, weights as float32 or float16.

    Raises ModelError: not readable as that, quantised, or weights of another network.
    """
    import torch
    from transformers import WhisperForConditionalGeneration

    from tlcore.models.build import quiet

    variables = read_variables(source / "model.bin")
    settings = json.loads((source / "config.json").read_text())
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "tokenizer.json", directory / "tokenizer.json")
    tokenizer = _save_tokenizer(directory)
    special = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _SPECIAL.items()}
    config = _config_of(variables, special)
    state = {name: torch.from_numpy(array.astype(np.float32)) for name, array in renamed(variables).items()}
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    missing, unknown = model.load_state_dict(state, strict=False, assign=True)
    if missing or unknown:
        wrong = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which the network has not"
        raise ModelError(f"{source}/model.bin {wrong}", hint="these are weights of another network")
    model.tie_weights()
    model.generation_config = _generation_of(settings, special, config)
    with quiet():
        model.save_pretrained(directory)
    _save_extractor(directory, config.num_mel_bins)


def read_variables(path: Path) -> Variables:
    """Every variable by name, aliases too. Raises ModelError."""
    try:
        with path.open("rb") as file:
            return _read(file, path)
    except (OSError, struct.error, ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read as a CTranslate2 model: {error}") from error


def _read(file: BinaryIO, path: Path) -> Variables:
    version, specification = _number(file, "I"), _text(file)
    if version != _VERSION or specification != _SPECIFICATION:
        raise ModelError(
            f"{path}: is {specification} in version {version}",
            hint=f"what is read: {_SPECIFICATION} in version {_VERSION}",
        )
    _number(file, "I")  # the specification's revision
    found: Variables = {}
    for _ in range(_number(file, "I")):
        name = _text(file)
        shape = [_number(file, "I") for _ in range(_number(file, "B"))]
        kind, size_bytes = _number(file, "B"), _number(file, "I")
        found[name] = np.frombuffer(file.read(size_bytes), dtype=_TYPES[kind]).reshape(shape)
    for _ in range(_number(file, "I")):
        alias, target = _text(file), _text(file)
        found[alias] = found[target]
    return found


def _number(file: BinaryIO, kind: str) -> int:
    value: int = struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]
    return value


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()


def renamed(variables: Variables) -> Variables:
    """The arrays by transformers' names. Raises ModelError where one is not there or is quantised."""
    state: Variables = {}

    def take(name: str, source: str, part: slice = slice(None)) -> None:
        if source not in variables:
            raise ModelError(f"the weights have no {source}", hint="these are weights of another network")
        if variables[source].dtype not in (np.float32, np.float16):
            raise ModelError(f"{source} is quantised", hint="give weights as float16 or float32")
        state[name] = variables[source][part]

    def both(name: str, source: str, part: slice = slice(None)) -> None:
        take(f"{name}.weight", f"{source}/weight", part)
        take(f"{name}.bias", f"{source}/bias", part)

    def norm(name: str, source: str) -> None:
        take(f"{name}.weight", f"{source}/gamma")
        take(f"{name}.bias", f"{source}/beta")

    def attention(name: str, source: str, projections: dict[str, tuple[int, int, int]]) -> None:
        for letter, (linear, place, parts) in projections.items():
            width = len(variables[f"{source}/linear_{linear}/weight"]) // parts
            part = slice(place * width, (place + 1) * width)
            take(f"{name}.{letter}_proj.weight", f"{source}/linear_{linear}/weight", part)
            if letter != "k":  # whose bias is zero in CTranslate2 and absent in transformers
                take(f"{name}.{letter}_proj.bias", f"{source}/linear_{linear}/bias", part)

    together = {"q": (0, 0, 3), "k": (0, 1, 3), "v": (0, 2, 3), "out": (1, 0, 1)}
    apart = {"q": (0, 0, 1), "k": (1, 0, 2), "v": (1, 1, 2), "out": (2, 0, 1)}
    for side in ("encoder", "decoder"):
        for layer in range(_layers(variables, side)):
            source, name = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            attention(f"{name}.self_attn", f"{source}/self_attention", together)
            norm(f"{name}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            if side == "decoder":
                attention(f"{name}.encoder_attn", f"{source}/attention", apart)
                norm(f"{name}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
            both(f"{name}.fc1", f"{source}/ffn/linear_0")
            both(f"{name}.fc2", f"{source}/ffn/linear_1")
            norm(f"{name}.final_layer_norm", f"{source}/ffn/layer_norm")
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        take(f"model.{side}.embed_positions.weight", f"{side}/position_encodings/encodings")
    for convolution in ("conv1", "conv2"):
        both(f"model.encoder.{convolution}", f"encoder/{convolution}")
    take("model.decoder.embed_tokens.weight", "decoder/embeddings/weight")
    take("proj_out.weight", "decoder/projection/weight")
    return state


def _layers(variables: Variables, side: str) -> int:
    return len({name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_") and name.count("/") > 2})


def _config_of(variables: Variables, special: dict[str, int]) -> Any:
    """Sizes as the weights have them."""
    from transformers import WhisperConfig

    vocabulary, width = variables["decoder/embeddings/weight"].shape
    feed = len(variables["encoder/layer_0/ffn/linear_0/weight"])
    layers = {side: _layers(variables, side) for side in ("encoder", "decoder")}
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        max_source_positions=len(variables["encoder/position_encodings/encodings"]),
        max_target_positions=len(variables["decoder/position_encodings/encodings"]),
        **{f"{side}_layers": count for side, count in layers.items()},
        **{f"{side}_attention_heads": width // _HEAD_SIZE for side in layers},
        **{f"{side}_ffn_dim": feed for side in layers},
        **{name: special[name] for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id")},
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def _generation_of(settings: dict[str, Any], special: dict[str, int], config: Any) -> Any:
    """How text is produced, as OpenAI's own settings have it."""
    from transformers import GenerationConfig

    if config.vocab_size != _ENGLISH_TOKENS:
        raise ModelError(
            f"the weights have {config.vocab_size} tokens, those of a Whisper of several languages",
            hint=f"only English ones ({_ENGLISH_TOKENS} tokens) are converted",
        )
    return GenerationConfig(
        **special,
        is_multilingual=False,
        alignment_heads=settings["alignment_heads"],
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        max_initial_timestamp_index=50,
        max_length=config.max_target_positions,
        return_timestamps=False,
    )


def _save_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    names = {
        "tokenizer_class": "WhisperTokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return tokenizer


def _save_extractor(directory: Path, mel_bins: int) -> None:
    from transformers import WhisperFeatureExtractor

    WhisperFeatureExtractor(feature_size=mel_bins).save_pretrained(directory)
