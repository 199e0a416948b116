"""What an export may write over, what it leaves alone, and what a crash in the middle leaves behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from trained_text_model import Trained, load

from tlcore.errors import CheckpointCorrupt, RequestError
from tlcore.train import places
from tlcore.train.adapter import export_adapter
from tlcore.train.export import export_checkpoint

pytestmark = pytest.mark.unit

SHARD = 4000


def test_an_export_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    export_checkpoint(trained.url, str(tmp_path / "out"))
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    chunk = next(key for each in trained.store.list("cas/") if (key := each.key))
    trained.store.delete([chunk])
    with pytest.raises(CheckpointCorrupt):
        export_checkpoint(trained.url, str(tmp_path / "out"), dtype="bf16")
    with pytest.raises(CheckpointCorrupt):
        export_checkpoint(trained.url, str(tmp_path / "new"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_nothing_but_an_earlier_export_is_written_over(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match="exists and is no exported model"):
        export_checkpoint(trained.url, str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.txt").exists()
    export_checkpoint(trained.url, str(tmp_path / "out"), max_shard_bytes=SHARD)
    export_checkpoint(trained.url, str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]


def test_an_empty_directory_is_taken_and_a_file_is_not(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    (tmp_path / "out").mkdir()
    export_checkpoint(trained.url, str(tmp_path / "out"))
    assert {"config.json", "model.safetensors"} <= held(tmp_path / "out")
    (tmp_path / "note").write_text("years of work")
    with pytest.raises(RequestError, match="note exists and is no exported model"):
        export_checkpoint(trained.url, str(tmp_path / "note"))


def test_the_model_that_was_trained_from_is_not_written_over(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    source = Path(trained.recipe.model.source)
    before = (source / "model.safetensors").read_bytes()
    (tmp_path / "link").symlink_to(source)
    for destination in (str(source), f"file://{source}/", str(tmp_path / "link")):
        with pytest.raises(RequestError, match="is the model that this checkpoint was trained from"):
            export_checkpoint(trained.url, destination)
    assert (source / "model.safetensors").read_bytes() == before


def held(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_a_directory_that_merely_has_a_config_json_is_left_alone(tmp_path: Path) -> None:
    """A project, a web page's settings: everything in it used to be deleted."""
    trained = Trained(tmp_path)
    (tmp_path / "mine" / "src").mkdir(parents=True)
    for name in ("config.json", "thesis.txt", "src/main.py", "adapter_config.json"):
        (tmp_path / "mine" / name).write_text("{}")
    before = held(tmp_path / "mine")
    with pytest.raises(RequestError, match="exists and is no exported model"):
        export_checkpoint(trained.url, str(tmp_path / "mine"))
    assert held(tmp_path / "mine") == before
    with pytest.raises(RequestError, match="holds objects and is no exported model"):
        places.StorePrefix(f"file://{tmp_path}/mine")
    assert held(tmp_path / "mine") == before


def test_what_an_export_does_not_write_stays_beside_it(tmp_path: Path) -> None:
    """A clone of a model, notes beside an export: a second export takes its own files alone."""
    trained, out = Trained(tmp_path), tmp_path / "out"
    export_checkpoint(trained.url, str(out), max_shard_bytes=SHARD)
    (out / ".git").mkdir()
    for name in (".git/HEAD", "README.md", "thesis.txt", "old.safetensors"):
        (out / name).write_text("years of work")
    assert "model.safetensors.index.json" in held(out)
    export_checkpoint(trained.url, str(out))
    mine = {".git/HEAD", "README.md", "thesis.txt", "old.safetensors"}
    assert held(out) == mine | {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {(out / name).read_text() for name in mine} == {"years of work"}
    assert torch.equal(trained.logits(load(out)), trained.logits(trained.model))


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_crash_while_an_export_is_replaced_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    trained, out = Trained(tmp_path), tmp_path / "out"
    export_checkpoint(trained.url, str(out), max_shard_bytes=SHARD)
    replace, left = Path.replace, [None] * moves

    def crash(self: Path, target: Path) -> Path:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(trained.url, str(out), dtype="bf16")
    monkeypatch.undo()
    assert not (out / "config.json").exists()
    export_checkpoint(trained.url, str(out), dtype="bf16")
    assert held(out) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert load(out).dtype == torch.bfloat16


@pytest.mark.parametrize("url", ["{}/out", "store:{}/out"])
def test_an_adapter_and_a_whole_model_are_not_put_into_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """An adapter exported over a model deleted it; beside it, loaders would take one for the other."""
    if url.startswith("store:"):
        monkeypatch.setattr("tlcore.train.export.open_place", lambda path: places.StorePrefix(f"file://{path}"))
        monkeypatch.setattr("tlcore.train.adapter.open_place", lambda path: places.StorePrefix(f"file://{path}"))
    destination, out = url.removeprefix("store:").format(tmp_path), tmp_path / "out"
    trained = Trained(tmp_path, transfer__strategy="lora", transfer__rank=3)
    export_checkpoint(trained.url, destination)
    before = {name: (out / name).read_bytes() for name in held(out)}
    with pytest.raises(RequestError, match=r"out holds config\.json, and adapter_config\.json of an exported adapter"):
        export_adapter(trained.url, destination)
    assert {name: (out / name).read_bytes() for name in held(out)} == before
    shutil.rmtree(out)
    export_adapter(trained.url, destination)
    before = {name: (out / name).read_bytes() for name in held(out)}
    with pytest.raises(RequestError, match=r"adapter_config\.json, and model\.safetensors of an exported whole model"):
        export_checkpoint(trained.url, destination)
    assert {name: (out / name).read_bytes() for name in held(out)} == before
    export_adapter(trained.url, destination)
    assert {name: (out / name).read_bytes() for name in held(out)} == before


def test_an_export_to_a_store_that_was_broken_off_is_no_model_and_can_be_done_again(tmp_path: Path) -> None:
    url, out = f"file://{tmp_path}/out", tmp_path / "out"
    for broken_off in (lambda place: None, lambda place: place.abandon()):
        for earlier in (False, True):
            shutil.rmtree(out, ignore_errors=True)
            if earlier:
                first = places.StorePrefix(url)
                for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"):
                    first.write(name, b"1")
                first.commit()
            place = places.StorePrefix(url)
            place.write("model.safetensors", b"2")
            assert not (out / "config.json").exists()
            broken_off(place)
            again = places.StorePrefix(url)
            for name in ("config.json", "tokenizer.json", "model.safetensors"):
                again.write(name, b"3")
            again.commit()
            assert held(out) == {"config.json", "tokenizer.json", "model.safetensors"}


def test_a_file_that_no_store_would_take_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LARGEST_PUT_BYTES", 10)
    place = places.StorePrefix(f"file://{tmp_path}/store")
    place.write("small", b"0123456789")
    with pytest.raises(RequestError, match="large has 11 bytes, and an object store takes at most 10 in one request"):
        place.write("large", b"0123456789+")
    place.abandon()
    assert not list((tmp_path / "store").rglob("*"))
