"""Every file of tlcore, jobs and cluster keeps the rules of `project_rules.py`, and each rule bites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from project_rules import (
    HEAVY,
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    ROOMS,
    ROOT,
    RULES,
    Source,
    broad_excepts,
    docstring,
    import_direction,
    imports,
    loaded_by,
    product_files,
    sizes,
    unsafe_calls,
    vendors,
)

Rule = Callable[[Source], Iterator[str]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps(rule: Rule) -> None:
    broken = [f"{path.relative_to(ROOT)}:{fault}" for path in product_files() for fault in rule(Source.read(path))]
    assert not broken, "\n".join(broken)


def test_the_table_names_every_room() -> None:
    folders = {path.name for path in (ROOT / "tlcore").iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ROOMS) - {"errors"}


BAD: list[tuple[Rule, str, str, str]] = [
    (import_direction, "tlcore.recipe.plan", "from tlcore.storage import open_store", "recipe imports tlcore.storage"),
    (import_direction, "tlcore.train.loop", "import tlcore.sweep.board", "train imports tlcore.sweep"),
    (
        import_direction,
        "tlcore.train.loop",
        "def late():\n    from tlcore.sweep import board",
        "train imports tlcore.sweep",
    ),
    (import_direction, "tlcore.train.loop", "from ..sweep import board", "train imports tlcore.sweep.board"),
    (import_direction, "tlcore.train.loop", "from tlcore import sweep", "train imports tlcore.sweep"),
    (import_direction, "tlcore.sweep.runner", "from tlcore.cli import main", "sweep imports tlcore.cli"),
    (
        import_direction,
        "tlcore.report.live",
        "from tlcore.commands.options import Name",
        "report imports tlcore.commands",
    ),
    (import_direction, "tlcore.cli", "from jobs import sweep", "tlcore imports jobs"),
    (vendors, "tlcore.train.loop", "import ray.train", "ray outside remote, sweep"),
    (vendors, "tlcore.sweep.slot", "from deepspeed import initialize", "deepspeed outside engine"),
    (vendors, "tlcore.data.files", "import s3fs", "s3fs outside storage"),
    (vendors, "tlcore.cli", "def late():\n    import ray", "ray outside"),
    (vendors, "cluster.local", "import ray", "ray outside"),
    (unsafe_calls, "tlcore.checkpoint.reader", "import pickle", "imports pickle"),
    (unsafe_calls, "tlcore.checkpoint.reader", "from cloudpickle import loads", "imports cloudpickle"),
    (unsafe_calls, "tlcore.models.build", "torch.load(path)", "without weights_only"),
    (unsafe_calls, "tlcore.models.build", "torch.load(path, weights_only=False)", "without weights_only"),
    (unsafe_calls, "tlcore.models.build", "np.load(path, allow_pickle=True)", "allow_pickle"),
    (unsafe_calls, "cluster.local", "subprocess.run('ls', shell=True)", "a shell runs subprocess.run"),
    (unsafe_calls, "cluster.local", "os.system('ls')", "a shell runs os.system"),
    (broad_excepts, "tlcore.cli", "try:\n    pass\nexcept:\n    pass", "catches everything"),
    (broad_excepts, "tlcore.cli", "try:\n    pass\nexcept Exception as error:\n    print(error)", "catches Exception"),
    (broad_excepts, "tlcore.cli", "try:\n    pass\nexcept (OSError, BaseException):\n    pass", "BaseException"),
    (broad_excepts, "tlcore.cli", "try:\n    pass\nexcept Exception:  # noqa: BLE001\n    pass", "catches Exception"),
    (docstring, "tlcore.cli", "import sys", "no module docstring"),
    (sizes, "tlcore.cli", "x = 1\n" * (MAX_FILE_LINES + 1), "more than"),
    (sizes, "tlcore.cli", "def long():\n" + "    x = 1\n" * MAX_FUNCTION_LINES, "long has"),
]

GOOD: list[tuple[Rule, str, str]] = [
    (import_direction, "tlcore.report.tables", "from tlcore.remote import jobs"),
    (import_direction, "tlcore.cli", "from tlcore.sweep import run_sweep"),
    (import_direction, "jobs.sweep", "from tlcore.cli import main"),
    (vendors, "jobs.bench.step", "import deepspeed, ray"),
    (vendors, "tlcore.sweep.slot", "from ray import tune"),
    (unsafe_calls, "tlcore.models.build", "torch.load(path, weights_only=True)"),
    (broad_excepts, "tlcore.cli", "try:\n    pass\nexcept Exception:\n    clean()\n    raise"),
    (broad_excepts, "tlcore.cli", "try:\n    pass\nexcept Exception:  # noqa: BLE001 (the last handler)\n    pass"),
]


@pytest.mark.parametrize(
    ("rule", "module", "text", "expected"), BAD, ids=[f"{bad[0].__name__}-{bad[3]}" for bad in BAD]
)
def test_rule_bites(rule: Rule, module: str, text: str, expected: str) -> None:
    faults = list(rule(Source.parse(module, text)))
    assert faults, "nothing was found"
    assert expected in faults[0]


@pytest.mark.parametrize(("rule", "module", "text"), GOOD)
def test_rule_lets_pass(rule: Rule, module: str, text: str) -> None:
    assert list(rule(Source.parse(module, text))) == []


def _sources() -> dict[str, Source]:
    return {source.module: source for source in map(Source.read, sorted((ROOT / "tlcore").rglob("*.py")))}


@pytest.mark.parametrize("module", ["tlcore.cli", "tlcore.recipe", "tlcore.errors"])
def test_loads_light(module: str) -> None:
    loaded = loaded_by(module, _sources())
    assert not {name: by for name, by in loaded.items() if name in HEAVY}


def test_model_families_cost_nothing_before_one_is_met() -> None:
    assert not {"torch", "transformers", "torchvision", "h5py"} & set(loaded_by("tlcore.models", _sources()))


def test_weight_is_seen_through_other_modules() -> None:
    sources = {
        "tlcore": Source.parse("tlcore", ""),
        "tlcore.cli": Source.parse("tlcore.cli", "from tlcore.recipe import load"),
        "tlcore.recipe": Source.parse("tlcore.recipe", "import tlcore.recipe.heavy"),
        "tlcore.recipe.heavy": Source.parse(
            "tlcore.recipe.heavy", "try:\n    import torch\nexcept ImportError:\n    raise"
        ),
    }
    assert loaded_by("tlcore.cli", sources) == {"torch": "tlcore.recipe.heavy"}


def test_imports_inside_functions_weigh_nothing() -> None:
    source = Source.parse("tlcore.cli", "def late():\n    import torch\nif TYPE_CHECKING:\n    import ray")
    assert list(imports(source, top_level_only=True)) == []


def test_files_are_found() -> None:
    assert ROOT / "tlcore" / "errors.py" in product_files()
    assert Path(__file__) not in product_files()
