"""Every form of `model.source`, and the message of each that cannot be had."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_text_model import save_tiny_bert

from tlcore.errors import ModelError
from tlcore.models import hub, resolve_source
from tlcore.models.fetch import fetch_prefix

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that fails when imported, with a model inside."""
    root = tmp_path / "site" / "weights_for_test"
    (root / "model").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / "model" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return root


def test_a_directory_gives_config_tokenizer_and_digest(bert: Path) -> None:
    found = resolve_source(str(bert))
    assert found.load_config(num_labels=4).num_labels == 4
    assert found.load_tokenizer()("good film")["input_ids"] == [2, 4, 6, 3]
    assert found.digest == hashlib.sha256((bert / "model.safetensors").read_bytes()).hexdigest()


def test_other_labels_than_the_sources_own_are_nothing_to_warn_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import BertConfig

    BertConfig(num_labels=7).save_pretrained(tmp_path)
    found = resolve_source(str(tmp_path))
    named = found.load_config(num_labels=2, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    assert (named.num_labels, named.id2label) == (2, {0: "a", 1: "b"})
    assert found.load_config(num_labels=3).num_labels == 3
    assert "incompatible" not in "".join(capfd.readouterr())


def test_layer_drop_is_off_in_every_model_and_in_its_towers_since_ranks_would_draw_apart(tmp_path: Path) -> None:
    import transformers as hf

    translator = hf.M2M100Config()
    assert (translator.encoder_layerdrop, translator.decoder_layerdrop) == (0.05, 0.05), "of its own accord"
    translator.save_pretrained(tmp_path / "translator")
    found = resolve_source(str(tmp_path / "translator")).load_config()
    assert (found.encoder_layerdrop, found.decoder_layerdrop) == (0.0, 0.0)
    hf.Kosmos2Config(text_config={"layerdrop": 0.3}).save_pretrained(tmp_path / "seeing")
    assert resolve_source(str(tmp_path / "seeing")).load_config().text_config.layerdrop == 0.0
    hf.SeamlessM4TConfig().save_pretrained(tmp_path / "speaking")
    assert resolve_source(str(tmp_path / "speaking")).load_config().speech_encoder_layerdrop == 0.0


def test_the_digest_follows_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    found = resolve_source(str(tmp_path))
    before = found.digest
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert found.digest != before


def test_the_digest_of_several_files_depends_on_each(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(b"same")
    found = resolve_source(str(tmp_path))
    before = found.digest
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"changed")
    assert len({before, found.digest}) == 2


def test_a_package_is_found_without_importing_it(package: Path) -> None:
    assert resolve_source("package:weights_for_test/model").directory == (package / "model").resolve()
    assert "weights_for_test" not in sys.modules


BAD = {
    "package:not_there_at_all/model": "no package 'not_there_at_all' is installed here",
    "package:weights_for_test/modle": "has no folder 'modle'",
    "package:weights_for_test/../../x": "is not of the form package:",
    "package:a.b/model": "is not of the form package:",
    "package:weights_for_test": "has no config.json, so it is no transformers model",
    "./nowhere": "nowhere does not exist",
    "/etc/passwd": "/etc/passwd is a file, not a directory",
    "torchvision:resnet5": "torchvision has no classifier 'resnet5'",
    "torchvision:inception_v3": "torchvision has no classifier 'inception_v3' that can be taken",
    "torchvision:resnet18@/etc/nothing.pth": "/etc/nothing.pth is no file",
    "torchvision:resnet18@/etc/passwd": "/etc/passwd: cannot be read as a state dict",
    "ftp://host/model": "nothing is known of ftp://",
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("package")
def test_each_source_that_cannot_be_had_gets_its_message(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_source(name)
    assert BAD[name] in caught.value.message
    assert caught.value.hint


def test_a_revision_needs_a_hub_id(bert: Path) -> None:
    with pytest.raises(ModelError, match="is no hub id and has no revisions"):
        resolve_source(str(bert), revision="main")


def test_code_from_the_hub_needs_a_revision() -> None:
    with pytest.raises(ModelError, match="would run whatever code is pushed there next"):
        resolve_source("owner/name", trust_remote_code=True)


def test_code_of_a_model_is_not_run_unless_asked(tmp_path: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="needs code that ships with the model"):
        resolve_source(str(tmp_path)).load_config()


def test_the_hub_is_asked_once_in_a_process(monkeypatch: pytest.MonkeyPatch, bert: Path) -> None:
    """What is pushed there during a sweep does not reach the later trials of a slot."""
    import huggingface_hub

    from tlcore.models import source as source_module

    asked: list[str] = []

    def download(name: str, **how: Any) -> str:
        asked.append(name)
        if len(asked) == 1:
            raise huggingface_hub.errors.LocalEntryNotFoundError("away for a moment")
        return str(bert)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(source_module, "hub_answers", lambda: True)
    with pytest.raises(ModelError):
        resolve_source("someone/asked-once")
    assert [resolve_source("someone/asked-once").directory for _ in range(3)] == [bert] * 3
    assert asked == ["someone/asked-once"] * 2, "a failure is asked again, an answer is kept"
    source_module._hub_directory.cache_clear()


def test_an_unreachable_hub_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not hub.hub_answers()
    with pytest.raises(ModelError, match="not in the hub cache, and the hub cannot be reached"):
        resolve_source("nobody/has-this-model")


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no \*\.safetensors file"):
        _ = resolve_source(str(tmp_path)).digest
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"in pytorch_model\.bin, a pickle"):
        _ = resolve_source(str(tmp_path)).digest


def test_a_prefix_is_fetched_whole_once_and_anew_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlcore.models.fetch.PART_BYTES", 3)
    origin = tmp_path / "bucket" / "tiny"
    (origin / "deeper").mkdir(parents=True)
    (origin / "config.json").write_bytes(b'{"a": 1}')
    (origin / "empty").write_bytes(b"")
    (origin / "deeper" / "other.onnx").write_bytes(b"not wanted")
    first = fetch_prefix(origin.as_uri(), tmp_path / "cache")
    assert sorted(path.name for path in first.glob("[!.]*")) == ["config.json", "empty"]
    assert (first / "config.json").read_bytes() == b'{"a": 1}'
    stamp = first.stat().st_mtime_ns
    assert fetch_prefix(origin.as_uri(), tmp_path / "cache") == first and first.stat().st_mtime_ns == stamp
    (origin / "config.json").write_bytes(b'{"a": 22}')
    assert fetch_prefix(origin.as_uri(), tmp_path / "cache") != first


def test_a_failed_fetch_leaves_no_directory_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlcore.errors import StorageUnreachable
    from tlcore.storage.local import LocalObjectStore

    origin = tmp_path / "bucket"
    origin.mkdir()
    (origin / "config.json").write_bytes(b"{}")
    (origin / "weights").write_bytes(b"abc")

    def broken(self: object, key: str, start: int, parts: Any) -> None:
        if key == "weights":
            raise StorageUnreachable("the connection broke")

    monkeypatch.setattr(LocalObjectStore, "get_into", broken)
    with pytest.raises(StorageUnreachable):
        fetch_prefix(origin.as_uri(), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_a_prefix_that_changes_while_it_is_fetched_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tlcore.storage.local import LocalObjectStore

    origin = tmp_path / "bucket"
    origin.mkdir()
    (origin / "config.json").write_bytes(b"{}")
    (origin / "weights").write_bytes(b"abcdef")
    get = LocalObjectStore.get_into

    def overtaken(self: LocalObjectStore, key: str, start: int, parts: Any) -> None:
        get(self, key, start, parts)
        if key == "weights":
            (origin / "weights").write_bytes(b"uvwxyz7")

    monkeypatch.setattr(LocalObjectStore, "get_into", overtaken)
    with pytest.raises(ModelError, match="changed while it was fetched"):
        fetch_prefix(origin.as_uri(), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_an_empty_prefix_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing lies directly under that prefix"):
        fetch_prefix(tmp_path.as_uri(), tmp_path / "cache")
