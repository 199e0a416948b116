"""What a directory store does beyond the contract: no torn file under any failure, and errors in words."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tlcore.errors import ObjectMissing, StorageDenied, StorageError, StorageFull, StorageUnreachable
from tlcore.storage import ObjectStore, open_store, reclaim
from tlcore.storage.base import is_too_short


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "root"))


def files(store: ObjectStore, tmp_path: Path) -> list[str]:
    return sorted(
        path.relative_to(tmp_path / "root").as_posix() for path in (tmp_path / "root").rglob("*") if path.is_file()
    )


def failing(number: int):
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EROFS, StorageDenied),
        (errno.EIO, StorageUnreachable),
    ],
)
def test_a_write_that_fails_leaves_the_old_object_and_no_litter(store, tmp_path, monkeypatch, number, kind):
    store.put("a/x", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(number))
        with pytest.raises(kind, match=r"cannot write .*/root/a/x: ") as caught:
            store.put("a/x", b"new")
        with pytest.raises(kind):
            store.put_if_absent("a/y", b"new")
    assert caught.value.hint and caught.value.fields == {"key": "a/x"}
    assert store.get("a/x") == b"old"
    assert files(store, tmp_path) == ["a/x"]


def test_bytes_are_on_disk_before_they_have_a_name(store, monkeypatch):
    steps: list[str] = []
    real_fsync, real_link, real_replace = os.fsync, os.link, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("fsync"), real_fsync(fd))[1])
    monkeypatch.setattr(os, "link", lambda a, b: (steps.append("name"), real_link(a, b))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (steps.append("name"), real_replace(a, b))[1])
    store.put("x", b"1")
    store.put_if_absent("y", b"1")
    assert steps == ["fsync", "name", "fsync"] * 2  # data, name, directory


def test_a_file_system_without_hard_links_is_named(store, monkeypatch):
    store.put("x", b"1")
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    with pytest.raises(StorageError, match="no hard links"):
        store.put_if_absent("y", b"1")


def test_a_killed_write_is_not_an_object(store, tmp_path):
    store.put("a/x", b"1")
    (tmp_path / "root/a/.tlcore-tmp-123-abc").write_bytes(b"half")
    assert [info.key for info in store.list()] == ["a/x"]


def test_old_leftovers_of_killed_writes_are_removed_and_young_ones_are_not(store, tmp_path):
    store.put("a/x", b"1")
    now = datetime.now(UTC)
    for name, age_s in (("a/.tlcore-tmp-1-old", 7200), ("b/c/.tlcore-tmp-2-old", 7200), ("a/.tlcore-tmp-3-young", 10)):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        os.utime(path, times=(now.timestamp() - age_s,) * 2)
    assert reclaim(store, now - timedelta(hours=1)) == 2
    assert files(store, tmp_path) == ["a/.tlcore-tmp-3-young", "a/x"]
    assert not (tmp_path / "root/b").exists()
    assert reclaim(store, now - timedelta(hours=1)) == 0


def scandir_fails(patch: pytest.MonkeyPatch, at: Path, number: int) -> None:
    """Reading the names of the directory `at` fails as the kernel says it."""
    scandir = os.scandir

    def scan(path):
        if Path(path) == at:
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    patch.setattr(os, "scandir", scan)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EACCES, StorageDenied), (errno.EIO, StorageUnreachable), (errno.ESTALE, StorageUnreachable)],
)
@pytest.mark.parametrize("unread", ["a", "a/b"])
def test_a_directory_that_cannot_be_read_is_not_taken_for_an_empty_one(
    store, tmp_path, monkeypatch, number, kind, unread
):
    for key in ("a/x", "a/b/y", "c/z"):
        store.put(key, b"1")
    with monkeypatch.context() as patch:
        scandir_fails(patch, tmp_path / "root" / unread, number)
        for ask in (lambda: store.list("a/"), store.list, lambda: reclaim(store, datetime.now(UTC))):
            with pytest.raises(kind, match=f"cannot list .*/root/{unread}: {os.strerror(number)}") as caught:
                ask()
            assert caught.value.hint
        assert [info.key for info in store.list("c/")] == ["c/z"]
    assert [info.key for info in store.list()] == ["a/b/y", "a/x", "c/z"]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR])
def test_a_directory_that_goes_while_names_are_read_is_passed_over(store, tmp_path, monkeypatch, number):
    for key in ("a/x", "a/b/y"):
        store.put(key, b"1")
    scandir_fails(monkeypatch, tmp_path / "root/a/b", number)
    assert [info.key for info in store.list()] == ["a/x"]
    assert reclaim(store, datetime.now(UTC)) == 0


def test_only_an_object_that_ends_too_soon_is_called_too_short(store):
    store.put("x", b"0123")
    for start, got in ((2, 2), (4, 0), (9, 0)):
        with pytest.raises(StorageError, match=f"wanted 3 bytes from byte {start}, got {got}") as caught:
            store.get_into("x", start, [memoryview(bytearray(3))])
        assert is_too_short(caught.value) and caught.value.fields == {"key": "x", "got": got}
    with pytest.raises(ObjectMissing) as missing:
        store.get_into("y", 0, [memoryview(bytearray(3))])
    assert not is_too_short(missing.value)


def test_an_object_and_a_directory_cannot_share_a_name(store):
    store.put("a/b", b"1")
    for write in (store.put, store.put_if_absent):
        for key in ("a", "a/b/c"):
            with pytest.raises(StorageError, match="cannot write"):
                write(key, b"2")


def test_directories_go_with_their_last_object(store, tmp_path):
    store.put("a/b/c/x", b"1")
    store.put("a/y", b"1")
    store.delete(["a/b/c/x"])
    assert not (tmp_path / "root/a/b").exists() and (tmp_path / "root/a").exists()


def test_nothing_is_created_by_looking(store, tmp_path):
    assert list(store.list()) == [] == list(store.list("a/b"))
    store.delete(["a/b"])
    assert not (tmp_path / "root").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_is_denied(store, tmp_path):
    (tmp_path / "root").mkdir(mode=0o500)
    with pytest.raises(StorageDenied, match="Permission denied"):
        store.put("x", b"1")


def test_a_directory_that_goes_while_it_is_made_is_made_again(store, monkeypatch):
    """`mkdir(exist_ok=True)` raises where the directory was there for mkdir and gone when pathlib looked: a delete next door."""
    mkdir, lost = Path.mkdir, []

    def raced(self, *args, **kwargs):
        if not lost:
            lost.append(self)
            raise FileExistsError(17, "File exists", str(self))
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", raced)
    store.put("cas/73/chunk", b"bytes")
    assert lost
    assert store.get("cas/73/chunk") == b"bytes"
