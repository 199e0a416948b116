"""TensorFlow.js' weights on manifests made by hand: what comes back, and what is said of files that are not whole or not known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from jobs.tfjs import exported_value, read_weights
from tlcore.errors import DataError

pytestmark = pytest.mark.unit


def entry(name: str, *shape: int, form: str | None = "uint8", **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "shape": list(shape), "dtype": "float32"}
    return made | ({"quantization": {"dtype": form, "scale": 0.5, "min": -1.0}} if form else {}) | more


def read(weights: list[Any], **shards: bytes) -> dict[str, Any]:
    return read_weights([{"paths": list(shards), "weights": weights}], shards.__getitem__)


def test_numbers_come_back_from_their_scale_and_least() -> None:
    found = read([entry("kernel", 2, 2), entry("bias", 2, form="uint16")], a=bytes([0, 1, 2]), b=bytes([3, 4, 0, 0, 1]))
    assert found["kernel"].tolist() == [[-1.0, -0.5], [0.0, 0.5]], "a weight may go on in the next shard"
    assert found["bias"].tolist() == [1.0, 127.0]
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}


def test_plain_numbers_scalars_and_several_groups() -> None:
    shards = {"a": np.array([1.5, -2.5], "<f4").tobytes(), "b": b"\x04"}
    groups = [
        {"paths": ["a"], "weights": [entry("plain", 2, form=None)]},
        {"paths": ["b"], "weights": [entry("one")]},
    ]
    found = read_weights(groups, shards.__getitem__)
    assert found["plain"].tolist() == [1.5, -2.5]
    assert found["one"].shape == () and found["one"] == 1.0


@pytest.mark.parametrize("content", [b"123", b"12345"])
def test_a_shard_of_another_length_is_said(content: bytes) -> None:
    text = f"shards first: {len(content)} bytes, but the manifest's 2 weights take 4"
    with pytest.raises(DataError, match=text) as caught:
        read([entry("kernel", 3), entry("bias", 1)], first=content)
    assert "fetch the file again" in caught.value.hint


@pytest.mark.parametrize(
    ("wrong", "text", "hint"),
    [
        (
            entry("kernel", 1, form="int4"),
            "weight 'kernel' has quantization 'int4', which is not read",
            "uint8, uint16",
        ),
        (
            entry("kernel", 1, form=None, dtype="string"),
            "weight 'kernel' has dtype 'string', which is not read",
            "float32",
        ),
        ({"name": "kernel"}, r"an entry that cannot be read \(KeyError\('shape'\)\): {'name': 'kernel'}", "again"),
        (entry("kernel", 1, quantization={"dtype": "uint8"}), r"cannot be read \(KeyError\('scale'\)\)", "again"),
        ("kernel", "an entry that cannot be read", "again"),
    ],
)
def test_what_is_not_known_is_said_with_the_weight_s_name(wrong: Any, text: str, hint: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        read([wrong], first=b"1")
    assert hint in caught.value.hint


def test_a_manifest_that_is_none_is_said() -> None:
    with pytest.raises(DataError, match=r"the weights manifest is no list of groups: \{'paths': 1\}"):
        read_weights({"paths": 1}, {}.__getitem__)


def test_a_script_s_value_is_read_and_not_run() -> None:
    script = 'function(e){e.exports=f()},{1:[function(e,a,n){a.exports={a:-.5,"b c":[!0,!1,null],2:1963e-20,d:{e:"a \\" b:{"}}'
    value = {"a": -0.5, "b c": [True, False, None], "2": 1.963e-17, "d": {"e": 'a " b:{'}}
    assert exported_value(script + "},{}]},{},[1])(1)});", "model.js") == value
    assert exported_value('h.exports="YkKN"},{}]', "shard.js") == "YkKN"
    assert exported_value("module.exports=" + json.dumps(value), "plain.js") == value


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("a.b=1", "model.js: exports no value"),
        ("a.exports={b:c}", r"model.js: no value at character 13: 'c}'"),
        ("a.exports={b:f(1)}", "model.js: no value at character 13"),
        ("a.exports={b:1", "model.js: no value at character 14"),
        ("a.exports={b:1]", "model.js: what it exports cannot be read"),
    ],
)
def test_a_script_without_a_value_is_said(script: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        exported_value(script, "model.js")
