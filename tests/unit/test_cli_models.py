"""`tlcore export` and `import` as typed: what they print, what they refuse, and where the result is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny_text_model import tiny_recipe
from typed_commands import run, settle, store_untrained

from tlcore.storage import open_store
from tlcore.tasks import build_task

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return store_untrained(tmp_path)


def test_export_prints_where_the_model_is(capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str) -> None:
    out = tmp_path / "out"
    assert run(capsys, "export", url, out, "--dtype", "bf16", "--max-shard-size", "4KB") == (0, f"{out}\n", "")
    assert len(list(out.glob("model-*.safetensors"))) > 2
    code, said, err = run(capsys, "export", url, tmp_path / "ds", "--format", "deepspeed")
    assert (code, said, err) == (0, f"{tmp_path / 'ds'}\n", "")
    assert (tmp_path / "ds" / "latest_universal").read_text() == "global_step5_universal"
    code, _, err = run(capsys, "export", url, tmp_path / "ds", "--format", "deepspeed")
    assert (code, err) == (2, f"tlcore: {tmp_path / 'ds'} exists\n  name a directory that does not exist\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--adapter"], "has no adapter"),
        (["--adapter", "--format", "deepspeed"], "exclude each other"),
        (["--max-shard-size", "big"], "--max-shard-size 'big' is no size"),
        (["--dtype", "fp8"], "fp8"),
    ],
)
def test_export_refuses_what_makes_no_sense(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str, words: list[str], expected: str
) -> None:
    code, out, err = run(capsys, "export", url, tmp_path / "out", *words)
    assert (code, out) == (2, "")
    assert expected in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_universal_checkpoint_is_not_put_into_a_store(capsys: pytest.CaptureFixture[str], url: str) -> None:
    code, _, err = run(capsys, "export", url, "s3://bucket/x", "--format", "deepspeed")
    assert code == 2
    assert "DeepSpeed loads from a directory alone" in err


def test_import_makes_a_run_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way round: a universal checkpoint of a whole training state becomes a run of the recipe's name."""
    import torch

    from tlcore.checkpoint import CheckpointRef, CheckpointWriter, Piece, Row
    from tlcore.engine.state import host_bytes, parameter_table

    recipe = tiny_recipe(tmp_path)
    model = build_task(recipe).build_model(from_scratch=False)
    table = parameter_table(model)
    states = {
        (name, state): torch.randn(parameter.numel())
        for name, parameter in model.named_parameters()
        for state in ("fp32", "exp_avg", "exp_avg_sq")
    }
    pieces = [
        Piece(Row(name, state, 0, values.numel(), "float32"), host_bytes(values))
        for (name, state), values in states.items()
    ]
    scalars = {"optimizer_steps": 2, "loss_scaler": None, "step": 2, "global_batch_size": 8}
    common = {"parameters": table, "scalars": scalars, "recipe": recipe.to_dict(), "task": {"labels": ["neg", "pos"]}}
    store = open_store(f"file://{tmp_path}/run")
    with CheckpointWriter(store, "t000", 0, 1, 1) as writer:
        writer.save(2, pieces, common)
        writer.wait()
    assert run(capsys, "export", CheckpointRef(store.url, "t000", 2), tmp_path / "ds", "--format", "deepspeed")[0] == 0
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(recipe.to_dict()))
    code, out, err = run(capsys, "import", tmp_path / "ds", file, "--name", "moved")
    assert code == 0, err
    ref = CheckpointRef.parse(out.strip())
    assert "/moved/" in ref.run_url and (ref.trial, ref.step) == ("t000", 2)
    said = (
        f"imported a universal checkpoint of 1 ranks at step 2; go on with: tlcore train {file} --resume --name moved\n"
    )
    assert err == said
    code, out, _ = run(capsys, "show", ref.run_url)
    assert code == 0 and "t000" in out
    for change, expected in (
        ("transfer.strategy=head", "word_embeddings.weight is frozen by the recipe and was trained there"),
        ("train.optimizer=sgd", "holds optimizer state exp_avg, exp_avg_sq; train.optimizer sgd keeps momentum_buffer"),
        ("data.labels=[neg, pos, x]", "classifier.weight has shape [2, 16], in the recipe's model [3, 16]"),
    ):
        code, _, err = run(capsys, "import", tmp_path / "ds", file, "--set", change)
        assert code == 2 and expected in err
    code, _, err = run(capsys, "import", tmp_path / "nowhere", file)
    assert code == 2 and "nowhere is no directory" in err
