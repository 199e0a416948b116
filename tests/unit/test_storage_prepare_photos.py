"""The photo job's rules on a made-up package; the real one is fetched by the job itself."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import prepare_photos as job
from tlcore.errors import DataError
from tlcore.storage import open_store

pytestmark = pytest.mark.unit


def stamps(home: Path, each: int = 6) -> Path:
    for label, folder in job.KINDS.items():
        (home / folder / "cartoon").mkdir(parents=True)
        (home / folder / "cartoon/drawn.png").write_bytes(b"drawn")
        for number in range(each):
            (home / folder / f"{number}.png").write_bytes(f"{label} {number}".encode())
        (home / folder / "again.png").write_bytes(f"{label} 0".encode())
        (home / folder / "0.txt").write_bytes(b"a caption")
    return home


def test_photos_stand_once_and_drawings_not_at_all(tmp_path: Path) -> None:
    photos = job.read_photos(stamps(tmp_path))
    assert len(photos) == 6 * len(job.KINDS)
    assert {photo.label for photo in photos} == set(job.KINDS)
    assert b"drawn" not in {photo.image for photo in photos}


def test_a_third_of_each_kind_is_for_the_test(tmp_path: Path) -> None:
    train, test = job.cut(job.read_photos(stamps(tmp_path)))
    assert [sum(photo.label == kind for photo in test) for kind in job.KINDS] == [2] * len(job.KINDS)
    assert len(train) == 4 * len(job.KINDS)
    assert not {photo.image for photo in train} & {photo.image for photo in test}


def test_a_second_run_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = job.read_photos(stamps(tmp_path / "stamps"))
    monkeypatch.setattr(job, "fetch_photos", lambda assets: photos)
    destination = str(tmp_path / "store")
    Path(destination).mkdir()
    assert job.main(["--destination", destination]) == 0
    assert "24 photos to train on, 12 to test with" in capsys.readouterr().out
    store = open_store(destination)
    assert pq.read_table(io.BytesIO(store.get("test.parquet"))).column_names == ["id", "image", "label"]
    monkeypatch.setattr(job, "fetch_photos", None)
    assert job.main(["--destination", destination]) == 0
    assert "there already" in capsys.readouterr().out


def test_a_package_of_another_layout_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no photos in animals/birds"):
        job.read_photos(tmp_path)
