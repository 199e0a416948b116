"""Which cluster is meant, what a submitted job looks like, and what preflight makes of what it found. No Ray runs."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from tlcore import cli
from tlcore.commands.options import overrides
from tlcore.errors import RecipeError, RequestError, SweepError
from tlcore.recipe import load_recipe
from tlcore.remote import checks, jobs
from tlcore.remote import preflight as preflight_module
from tlcore.remote.address import ClusterAddress, NoCluster, find_cluster, job_server_answers
from tlcore.remote.checks import NodeFacts, look
from tlcore.remote.jobs import JobFacts, JobServer, _Shown
from tlcore.remote.local_cluster import LocalCluster, LocalNode, cluster_directory, read_note, token_path, write_note
from tlcore.remote.preflight import Collective, NodeReport, PreflightReport, notes, preflight_table, problems
from tlcore.remote.submit import EXCLUDES, Submission, job_name, submit

LOCAL = LocalCluster(
    mark="m", booted=1, scratch="/nowhere", job_server="http://127.0.0.1:4000", gcs="127.0.0.2:4001",
    nodes=(LocalNode("127.0.0.2", 1, ()), LocalNode("127.0.0.3", 1, ("0",))), sessions=(7,), store_started=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TLCORE_CLUSTER_DIR", str(tmp_path / "cluster"))


def _local_is_up() -> None:
    cluster_directory().mkdir()
    token_path().write_text("local-token\n")
    write_note(LOCAL)


def test_the_note_comes_back_as_written() -> None:
    assert read_note() is None
    _local_is_up()
    assert read_note() == LOCAL
    assert (cluster_directory() / "cluster.json").stat().st_mode & 0o077 == 0


def test_a_broken_note_is_named() -> None:
    _local_is_up()
    (cluster_directory() / "cluster.json").write_text('{"mark": 1}')
    with pytest.raises(RequestError, match=r"cluster\.json cannot be read"):
        read_note()


def test_no_cluster_at_all() -> None:
    with pytest.raises(NoCluster, match="no cluster is named and no local one is up"):
        find_cluster()


def test_the_local_cluster_and_its_token() -> None:
    _local_is_up()
    found = find_cluster()
    assert (found.job_server, found.gcs, found.token) == (LOCAL.job_server, LOCAL.gcs, "local-token")
    assert find_cluster(LOCAL.gcs).job_server == LOCAL.job_server


def test_what_is_named_wins_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    _local_is_up()
    monkeypatch.setenv("RAY_ADDRESS", "http://ray:8265")
    assert find_cluster().job_server == "http://ray:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://api")
    assert find_cluster().job_server == "https://api"
    assert find_cluster("http://given:1/").job_server == "http://given:1"


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://", "auto"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(RequestError, match=f"--address: '{address}' is not a job server's address".replace("//", "/*")):
        find_cluster(address)


def test_a_token_elsewhere_is_not_the_local_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _local_is_up()
    assert find_cluster("http://other:8265").token is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from-home")
    assert find_cluster("http://other:8265").token == "from-home"
    (tmp_path / "named").write_text("from-file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert find_cluster("http://other:8265").token == "from-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-environment")
    assert find_cluster("http://other:8265").token == "from-environment"


def test_a_token_file_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(RequestError, match="/nowhere/token cannot be read"):
        find_cluster("http://other:8265")


def test_the_token_is_not_printed() -> None:
    assert "secret" not in repr(ClusterAddress("http://x", "test", "secret"))


def test_nobody_listening_is_no_answer() -> None:
    assert not job_server_answers(ClusterAddress("http://127.0.0.1:9", "test"))


@pytest.mark.parametrize(("name", "start"), [("tiny", "tiny-"), ("Meine Träume/2", "meine-tr-ume-2-"), ("...", "job-")])
def test_job_names_are_plain(name: str, start: str) -> None:
    assert job_name(name, datetime(2026, 11, 21, 4, 45, tzinfo=UTC), "ab12") == f"{start}20261121-044500-ab12"


def test_a_recipe_outside_the_upload(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(RequestError, match=r"\.\./other\.yaml lies outside"):
        submit(Submission("../other.yaml", directory=inside), print, print)


def test_a_bad_recipe_is_refused_here(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\nepoch: 3\n")
    with pytest.raises(RecipeError, match="epoch"):
        submit(Submission("bad.yaml", directory=tmp_path), print, print)


class Recorded:
    """A job server that keeps what it is asked to run."""

    def __init__(self, address: ClusterAddress) -> None:
        self.address = address
        asked.clear()

    def submit(self, job: str, entrypoint: str, runtime: dict[str, object]) -> None:
        asked.append((job, shlex.split(entrypoint)))


asked: list[tuple[str, list[str]]] = []


def test_storage_and_name_from_the_command_line_stand_for_the_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe has no storage: it is checked here as the job will read it, and the job bears the name that was given."""
    lines = ("name: x", "task: text-classification", "model: {source: org/model}", "data: {train: train.csv}")
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tlcore.remote.submit.JobServer", Recorded)
    cluster = ["--address", "http://head:8265", "--detach"]
    assert cli.main(["submit", "r.yaml", *cluster]) == 2
    assert "storage" in capsys.readouterr().err
    given = ["--storage", "s3://bucket/p", "--name", "other", "--set", "train.epochs=2", "--resume"]
    assert cli.main(["submit", "r.yaml", *given, *cluster]) == 0
    [(job, words)] = asked
    assert job.startswith("other-")
    assert words[:5] == ["python", "-m", "tlcore", "sweep", "r.yaml"] and words[-1] == "--resume"
    recipe = load_recipe("r.yaml", overrides(words[6:-1:2]))
    assert (recipe.storage, recipe.name, recipe.train.epochs) == ("s3://bucket/p", "other", 2)


@pytest.mark.parametrize("name", ["id_rsa.pem", ".env", ".env.local", "credentials", "server.key"])
def test_secrets_stay_home(name: str) -> None:
    assert any(fnmatch(name, pattern) for pattern in EXCLUDES)


@pytest.mark.parametrize("name", ["tlcore/recipe/credentials.py", "tlcore/storage/keys.py", "jobs/recipes/tiny.yaml"])
def test_code_travels(name: str) -> None:
    assert not any(fnmatch(Path(name).name, pattern) for pattern in EXCLUDES)


def test_a_log_sent_again_is_shown_once() -> None:
    written: list[str] = []
    shown = _Shown(written.append)
    shown.take("one\n", begin=0)
    shown.take("one\n", begin=0)
    shown.take("e\ntwo\n", begin=2)
    shown.take("one\ntwo\nthree\n", begin=0)
    assert "".join(written) == "one\ntwo\nthree\n"


class FlakyJob:
    """Ray's client of one job. `answers`: the seconds that pass before each question about it, and the status that it has by then;
    None where the connection breaks off."""

    def __init__(self, answers: list[tuple[float, str | None]]) -> None:
        self._answers, self.now_s = answers, 0.0

    def get_job_info(self, job: str) -> JobDetails:
        passed_s, status = self._answers.pop(0)
        self.now_s += passed_s
        if status is None:
            raise ConnectionError("reset by peer")
        return JobDetails(type=JobType.SUBMISSION, submission_id=job, status=JobStatus(status), entrypoint="true")

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "one\n"
        await asyncio.Event().wait()

    def get_job_logs(self, job: str) -> str:
        return "one\ntwo\n"


def followed(monkeypatch: pytest.MonkeyPatch, answers: list[tuple[float, str | None]]) -> tuple[JobFacts, str]:
    client, written = FlakyJob(answers), list[str]()
    monkeypatch.setattr(jobs, "_POLL_S", 0.01)
    monkeypatch.setattr(jobs, "job_server_answers", lambda address: True)
    monkeypatch.setattr(jobs, "JobSubmissionClient", lambda *args, **kwargs: client)
    server = JobServer(ClusterAddress("http://head:8265", "test"), clock=lambda: client.now_s)
    return server.follow("j", written.append), "".join(written)


def test_a_connection_that_breaks_off_after_hours_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(0.0, "RUNNING"), (3600.0, "RUNNING"), (1.0, None), (1.0, None), (1.0, "RUNNING")]
    facts, written = followed(monkeypatch, [*answers, *[(1.0, "SUCCEEDED")] * 2])
    assert (facts.status, written) == ("SUCCEEDED", "one\ntwo\n")


def test_a_cluster_that_stays_away_for_a_minute_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SweepError, match=r"lost the log of j: .* broke off: reset by peer") as caught:
        followed(monkeypatch, [(0.0, "RUNNING"), (3600.0, "RUNNING"), (30.0, None), (31.0, None)])
    assert caught.value.hint == "the job may still run: tlcore attach j"


@pytest.mark.parametrize(
    ("status", "driver", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 1), ("STOPPED", 0, 1)],
)
def test_exit_codes(status: str, driver: int | None, expected: int) -> None:
    assert JobFacts("j", status, "", "", driver, None).to_exit_code() == expected


FACTS = NodeFacts({"python": "3.11.7", "torch": "2.14.1"}, (), 0.1, "")
FIT = PreflightReport(
    (NodeReport("a", "a-node", 4.0, 0.0, FACTS), NodeReport("b", "b-node", 4.0, 0.0, FACTS)),
    Collective("gloo", 2, 0.01, 1 << 24),
    "s3://b/p",
)


def test_a_fit_cluster_has_no_problems() -> None:
    assert problems(FIT) == []
    assert FIT.exit_code == 0
    assert PreflightReport.from_dict(FIT.to_dict()) == FIT
    assert preflight_table(FIT).row_count == 2


def test_a_store_without_conditional_put_is_noted_once_and_is_no_problem(monkeypatch, capsys) -> None:
    weakness = "the store at http://minio:9000 does not honour If-None-Match: two runs could both believe they own it"
    nodes = tuple(replace(node, facts=replace(FACTS, storage_weakness=weakness)) for node in FIT.nodes)
    report = replace(FIT, nodes=nodes)
    said = f"storage s3://b/p: {weakness}"
    assert (problems(report), notes(report), notes(FIT)) == ([], [said], [])
    report = replace(report, notes=(said,))
    assert PreflightReport.from_dict(report.to_dict()) == report
    monkeypatch.setattr(preflight_module, "preflight", lambda storage, address: report)
    assert cli.main(["preflight", "--storage", "s3://b/p"]) == 0
    printed = capsys.readouterr().out
    assert "(see below)" in " ".join(printed.split())
    assert printed.count(said) == 1
    assert cli.main(["preflight", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [said]


def test_a_probe_from_a_node_tells_what_the_storage_does_not_promise(monkeypatch) -> None:
    monkeypatch.setattr(checks, "probe", lambda url: f"weak: {url}")
    assert look("s3://b/p").storage_weakness == "weak: s3://b/p"
    assert (look(None).storage_s, look(None).storage_weakness) == (None, "")


def _second(**changes: object) -> PreflightReport:
    node = FIT.nodes[1]
    own = {name: changes.pop(name) for name in ("facts", "error", "gpus") if name in changes}
    return replace(FIT, nodes=(FIT.nodes[0], replace(node, **own)), **changes)


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (_second(facts=replace(FACTS, versions={"python": "3.11.7", "torch": "2.13.0"})), "torch differs: 2.13.0 on b-node; "),
        (_second(facts=None, error="no answer in 90 s"), "node b-node: no answer in 90 s"),
        (_second(facts=replace(FACTS, storage_s=None, storage_error="denied")), "node b-node: storage s3://b/p: denied"),
        (_second(gpus=2.0), "node b-node: Ray offers 2 GPUs, torch sees 0"),
        (_second(collective=Collective("nccl", 2, None, 0, "timeout")), "nccl all-reduce over 2 ranks: timeout"),
    ],
)  # fmt: skip
def test_problems_are_said(report: PreflightReport, expected: str) -> None:
    found = problems(report)
    assert found
    assert expected in found[0]
