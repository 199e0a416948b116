"""The files at the top of the repository say what is true: targets, versions, the cluster file, the README's two commands."""

from __future__ import annotations

import re
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from project_rules import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

TARGETS = (
    *("setup", "sweep", "train", "chain", "test", "test-long", "check", "bench"),
    *("cluster-up", "cluster-down", "submit", "clean", "help"),
)
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}$")


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    return loaded


def test_ray_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(deepcopy(cluster))
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu_spot"]["max_workers"] == 8


def test_ray_refuses_a_misspelt_cluster_file(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["gpu"]["max_worker"] = 4
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(cluster))


def test_cluster_file_has_its_kinds_of_node(cluster: dict[str, Any]) -> None:
    kinds = {
        name: (kind["labels"], kind["node_config"].get("InstanceMarketOptions"))
        for name, kind in cluster["available_node_types"].items()
    }
    assert kinds["head"] == ({"market": "on-demand", "role": "head"}, None)
    assert kinds["gpu"] == ({"market": "on-demand", "role": "worker"}, None)
    assert kinds["gpu_spot"] == ({"market": "spot", "role": "worker"}, {"MarketType": "spot"})


def test_nothing_trains_on_the_head_and_every_node_has_a_role(cluster: dict[str, Any]) -> None:
    kinds = cluster["available_node_types"]
    assert prepare_config(deepcopy(cluster))["available_node_types"]["head"]["resources"]["CPU"] == 0
    assert {name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in kinds.items()} == {
        "head": "tlcore-head",
        "gpu": "tlcore-worker",
        "gpu_spot": "tlcore-worker",
    }


def test_cluster_file_turns_the_token_on(cluster: dict[str, Any]) -> None:
    for start in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in start[-1]
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("target", TARGETS)
def test_makefile_has(target: str) -> None:
    assert re.search(rf"^{target}:.*## \w", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_ci_runs_the_readmes_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "\nmake check\nmake test\n" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("command", ["make sweep", "make test"])
def test_readme_has(command: str) -> None:
    assert re.search(rf"^\s*{command}\b", (ROOT / "README.md").read_text(), re.MULTILINE)


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))


def test_constraints_are_plain_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if not re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)]


def test_every_requirement_is_pinned_within_its_range() -> None:
    project, pins = _project(), _pins()
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        pin = pins[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(pin), f"{requirement} does not allow the tested {pin}"


def test_assets_are_pinned_by_hash() -> None:
    lines = (ROOT / "jobs" / "assets.txt").read_text().splitlines()
    assets = [line for line in lines if line and not line.startswith("#")]
    assert assets
    assert all(HASH.search(line) and "==" in line for line in assets)


# A path of somebody's machine, or a package index other than the usual one.
FOREIGN = re.compile(
    r"(?<![\w.~$}*])/(?:root|work|Users/\w+|home/(?!ubuntu\b)\w+)/"
    r"|--(?:extra-)?index-url|--find-links|--trusted-host"
    r"|https?://[\w.-]*(?:artifactory|nexus|registry|mirror|proxy)[\w.-]*"
    r"|\b(?!10\.0\.0\.\d+\b)(?:10|172\.(?:1[6-9]|2\d|3[01])|192\.168)(?:\.\d{1,3}){2,3}\b"
)
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".cfg", ".sh", ""}
NOT_OURS = {"runs", "build", "dist", "__pycache__", "node_modules"}


def _own_files() -> list[Path]:
    hidden = {path.name for path in ROOT.iterdir() if path.name.startswith(".")} - {".ci", ".gitignore", ".github"}
    top = [path for path in ROOT.iterdir() if path.name not in hidden | NOT_OURS]
    found = [path for each in top for path in ([each] if each.is_file() else each.rglob("*"))]
    return [path for path in found if path.is_file() and path.suffix in TEXT and not NOT_OURS & set(path.parts)]


def _foreign(text: str) -> list[str]:
    return [match.group() for match in FOREIGN.finditer(text)]


def test_nothing_names_a_machine_or_a_registry() -> None:
    found = {str(path.relative_to(ROOT)): _foreign(path.read_text(errors="replace")) for path in _own_files()}
    found.pop(str(Path(__file__).relative_to(ROOT)))
    assert not {name: hits for name, hits in found.items() if hits}


@pytest.mark.parametrize(
    "text",
    [
        "cd /root/x",
        "'/home/ada/code/a.py'",
        "--extra-index-url x",
        "https://nexus.corp.example/simple",
        "http://10.1.2.3:80",
    ],
)
def test_foreign_names_are_seen(text: str) -> None:
    assert _foreign(text)


@pytest.mark.parametrize(
    "text", ["/home/ubuntu/tlcore", "~/work/x", "s3://b/root/x", "127.0.0.1:8265", "https://github.com/a/b"]
)
def test_usual_names_pass(text: str) -> None:
    assert not _foreign(text)


def test_torchrun_takes_the_words_of_the_makefile() -> None:
    """torchrun reads options up to the module's name, and `--local` abbreviates several of its own."""
    from torch.distributed.run import parse_args

    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\t@torchrun"))
    words = line.split()[1:]
    before = words[: words.index("$(RECIPE)")]
    parsed = parse_args(
        [word for word in before if "$(" not in word and "WORKERS" not in word and word != "--nproc_per_node"]
    )
    assert parsed.training_script == "tlcore"
    assert parsed.training_script_args == ["train", "--local"]


def test_the_readme_has_the_table_of_families_as_the_command_prints_it() -> None:
    from tlcore.tasks.families import families_markdown

    assert families_markdown() in (ROOT / "README.md").read_text()
