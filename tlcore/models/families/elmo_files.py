"""ELMo's published files: weights as HDF5 in the layout of bilm-tf, and options.json.

Source: the releases beside Peters et al. 2018 (arXiv:1802.05365), `elmo_*_weights.hdf5` and `elmo_*_options.json`. Owns that
layout. HDF5 needs h5py, which nothing else here does. Called by `convert.py`.

    char_embed                                       [261, character_size]; id 0 is this room's own, for padding
    CNN/W_cnn_i, b_cnn_i                             [1, width, character_size, many]
    CNN_high_i/W_carry, b_carry, W_transform, b_transform     [in, out]
    CNN_proj/W_proj, b_proj                          [in, out]
    RNN_d/RNN/MultiRNNCell/CellN/LSTMCell/W_0, B, W_P_0      d = 0 forward, 1 backward; W_0 is [input and state, 4 L]
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tlcore.errors import ModelError
from tlcore.models.families.elmo import ElmoConfig

Array = npt.NDArray[np.float32]
Get = Callable[[str], Array]


def read_options(path: Path) -> ElmoConfig:
    """The configuration that a published options.json means. Raises ModelError where it is unreadable or of another network."""
    try:
        options = json.loads(path.read_text())
        lstm, cnn = options["lstm"], options["char_cnn"]
        return ElmoConfig(
            max_characters_per_token=cnn["max_characters_per_token"],
            character_size=cnn["embedding"]["dim"],
            filters=cnn["filters"],
            activation=cnn.get("activation", "relu"),
            highway_layers=cnn["n_highway"],
            projection_size=lstm["projection_dim"],
            lstm_size=lstm["dim"],
            num_hidden_layers=lstm["n_layers"],
            cell_clip=lstm.get("cell_clip") or 0.0,
            projection_clip=lstm.get("proj_clip") or 0.0,
            skip_connections=lstm.get("use_skip_connections", False),
        )
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read as ELMo's options: {error}") from error
    except KeyError as error:
        raise ModelError(
            f"{path}: has no {error.args[0]!r}", hint="it is no options.json of ELMo with character convolutions"
        ) from error


def read_weights(path: Path, config: ElmoConfig) -> dict[str, Tensor]:
    """The tensors of a published HDF5 file by `ElmoModel`'s names. Raises ModelError."""
    try:
        import h5py
    except ImportError as error:
        raise ModelError(
            f"{path} is HDF5, and h5py is not installed here", hint="pip install h5py, or tlcore's extra named elmo"
        ) from error
    try:
        with h5py.File(path, "r") as file:

            def get(key: str) -> Array:
                if key not in file:
                    raise ModelError(f"{path}: has no {key}", hint="weights and options do not belong together")
                found: Array = np.asarray(file[key][...], dtype=np.float32)
                return found

            return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in _arrays(get, config).items()}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as ELMo's HDF5 weights: {error}") from error


def _arrays(get: Get, config: ElmoConfig) -> dict[str, Array]:
    embedding = get("char_embed")
    found: dict[str, Any] = {
        "characters.embedding.weight": np.concatenate([np.zeros_like(embedding[:1]), embedding]),
        "characters.projection.weight": get("CNN_proj/W_proj").T,
        "characters.projection.bias": get("CNN_proj/b_proj"),
    }
    for at in range(len(config.filters or [])):
        found[f"characters.convolutions.{at}.weight"] = get(f"CNN/W_cnn_{at}")[0].transpose(2, 1, 0)
        found[f"characters.convolutions.{at}.bias"] = get(f"CNN/b_cnn_{at}")
    for at in range(config.highway_layers):
        for part in ("carry", "transform"):
            found[f"characters.highways.{at}.{part}.weight"] = get(f"CNN_high_{at}/W_{part}").T
            found[f"characters.highways.{at}.{part}.bias"] = get(f"CNN_high_{at}/b_{part}")
    for at in range(config.num_hidden_layers):
        for name, arrays in _layer(get, config, at).items():
            found[f"layers.{at}.{name}"] = np.concatenate(arrays) if name == "bias" else np.stack(arrays)
    return found


def _layer(get: Get, config: ElmoConfig, at: int) -> dict[str, list[Array]]:
    """Both directions' arrays of one layer; the constant that bilm-tf's cells add to the forget gate goes into the bias."""
    arrays: dict[str, list[Array]] = {"input": [], "state": [], "bias": [], "projection": []}
    for direction in (0, 1):
        cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{at}/LSTMCell"
        both, bias = get(f"{cell}/W_0"), get(f"{cell}/B").copy()
        bias[2 * config.lstm_size : 3 * config.lstm_size] += 1.0
        arrays["input"].append(both[: config.projection_size].T)
        arrays["state"].append(both[config.projection_size :].T)
        arrays["bias"].append(bias)
        arrays["projection"].append(get(f"{cell}/W_P_0").T)
    return arrays
