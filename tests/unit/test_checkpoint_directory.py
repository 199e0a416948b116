"""Checkpoints in a directory that may be a mount: what it does not show for a moment, and what it shows late."""

from __future__ import annotations

import errno
import os
from datetime import timedelta
from pathlib import Path

import pytest
from checkpoint_state import State, saved

from tlcore.checkpoint import gc, newest_intact
from tlcore.errors import StorageUnreachable
from tlcore.storage import clock as clock_module
from tlcore.storage import open_store
from tlcore.storage.clock import listing_lag_s, store_now

pytestmark = pytest.mark.unit


def test_a_network_file_system_behind_a_symbolic_link_is_none_the_less_one(tmp_path, monkeypatch):
    (tmp_path / "mount").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mount")
    (tmp_path / "mounts").write_text(f"/dev/x / ext4 rw 0 0\nserver:/x {tmp_path.resolve()}/mount nfs4 rw 0 0\n")
    monkeypatch.setattr(clock_module, "_MOUNTS", tmp_path / "mounts")
    assert listing_lag_s(open_store(f"{tmp_path}/link/run")) == clock_module.NETWORK_LAG_S
    assert listing_lag_s(open_store(f"{tmp_path}/run")) == 0


@pytest.mark.parametrize("unseen", ["trials/t000", "trials/t000/step-00000001"])
def test_what_a_directory_does_not_show_for_a_moment_is_neither_collected_nor_passed_by(tmp_path, monkeypatch, unseen):
    """A stale handle of NFS: the collection must not take the manifest for gone, nor the restore begin anew."""
    store, state = open_store(f"file://{tmp_path}/run"), State()
    saved(store, state, step=1)
    before, scandir = list(store.list()), os.scandir

    def stale(path):
        if Path(path) == tmp_path / "run" / unseen:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return scandir(path)

    now = store_now(store) + timedelta(days=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", stale)
        with pytest.raises(StorageUnreachable, match="Stale file handle"):
            gc(store, now=now)
        with pytest.raises(StorageUnreachable, match="Stale file handle"):
            newest_intact(store, "t000")
    assert list(store.list()) == before
    assert newest_intact(store, "t000").manifest.step == 1
