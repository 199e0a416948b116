"""`tlcore select` as typed, where no candidate can be scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_text_model import tiny_recipe
from typed_commands import run, settle

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("words", [[], ["--json"]], ids=str)
def test_no_candidate_at_all_is_no_success(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settle(monkeypatch)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny_recipe(tmp_path).to_dict()))
    sources = [str(tmp_path / name) for name in ("none", "neither")]
    given = (word for source in sources for word in ("--source", source))
    code, out, err = run(capsys, "select", tmp_path / "r.yaml", *given, *words)
    assert (code, "no candidate could be scored" in err) == (2, True)
    if words:
        assert [(each["source"], each["rank"]) for each in json.loads(out)] == [(source, None) for source in sources]
        assert all("does not exist" in each["error"] for each in json.loads(out))
    else:
        assert "rank" in out
