"""Fetched archives: kept ones need no network, wrong ones are refused, and what cannot be had is one message."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import fetch
from tlcore.errors import DataError

pytestmark = pytest.mark.unit

CONTENT = b"an archive"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def writes(name: str, content: bytes, commands: list[list[str]]) -> Callable[..., Any]:
    """In place of subprocess.run: what the downloader would leave behind."""

    def run(command: list[str], cwd: Path | None = None, **_: Any) -> Any:
        commands.append(command)
        place = cwd or Path(next(word for word in command if word.startswith("--dest=")).removeprefix("--dest="))
        (place / name).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def fails(*_: Any, **__: Any) -> Any:
    return subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: no matching distribution\n")


@pytest.mark.parametrize(("file", "kind"), [("a-1.tar.gz", "--no-binary=:all:"), ("a-1.whl", "--only-binary=:all:")])
def test_a_fetched_archive_is_kept_and_a_wrong_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, kind: str
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(fetch.subprocess, "run", writes(file, b"another", commands))
    with pytest.raises(DataError, match="another SHA-256"):
        fetch.fetch_by_pip(tmp_path, "a==1", file, SHA256)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(fetch.subprocess, "run", writes(file, CONTENT, commands))
    assert fetch.fetch_by_pip(tmp_path, "a==1", file, SHA256) == tmp_path / file
    assert kind in commands[-1]
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, **__: pytest.fail("asked the network"))
    assert fetch.fetch_by_pip(tmp_path, "a==1", file, SHA256) == tmp_path / file
    (tmp_path / file).write_bytes(b"cut off")
    monkeypatch.setattr(fetch.subprocess, "run", fails)
    with pytest.raises(DataError, match="cannot download a==1: ERROR: no matching distribution") as caught:
        fetch.fetch_by_pip(tmp_path, "a==1", file, SHA256)
    assert file in caught.value.hint


def test_a_debian_package_comes_in_any_of_its_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "which", lambda name: name)
    commands: list[list[str]] = []
    monkeypatch.setattr(fetch.subprocess, "run", writes("sounds_2-1_all.deb", CONTENT, commands))
    versions = {"1-1": "0" * 64, "2-1": SHA256}
    assert fetch.fetch_by_apt(tmp_path, "sounds", versions) == tmp_path / "sounds_2-1_all.deb"
    assert commands[0][-1] == "sounds=1-1"
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, **__: pytest.fail("asked the network"))
    assert fetch.fetch_by_apt(tmp_path, "sounds", versions) == tmp_path / "sounds_2-1_all.deb"


def test_a_machine_without_debian_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="cannot download Debian package sounds 1-1: this machine has no apt-get"):
        fetch.fetch_by_apt(tmp_path, "sounds", {"1-1": SHA256})
    monkeypatch.setattr(fetch.shutil, "which", lambda name: name)
    monkeypatch.setattr(fetch.subprocess, "run", fails)
    with pytest.raises(DataError, match="no matching distribution"):
        fetch.fetch_by_apt(tmp_path, "sounds", {"1-1": SHA256})
    with pytest.raises(DataError, match="cannot unpack"):
        fetch.unpack_deb(tmp_path / "no.deb", tmp_path)
