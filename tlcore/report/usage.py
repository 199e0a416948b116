"""What a run used and what it will, worker-hours and cost, and that it stops: in words.

Owns the words and the expectation; the account is `storage/account.py`'s. Called by the displays, `runs.py` and `cli.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tlcore.report import figures
from tlcore.report.rows import Estimate
from tlcore.report.tables import resume_line
from tlcore.storage.account import Usage


def expected(used: Usage, ahead: Estimate) -> Usage | None:
    """What the whole sweep will have used, at the worker-hours that each share of it took so far, or early on with the workers that
    it has; None while that is not known."""
    if ahead.left_s is None or ahead.share <= 0:
        return None
    if ahead.early:  # the start of the workers, which comes but once, is still most of what was used
        more = ahead.workers * ahead.left_s / 3600
        if not used.worker_hours or not more:
            return None
        cost = None if used.cost is None else used.cost * (1 + more / used.worker_hours)
        return Usage(used.hours + ahead.left_s / 3600, used.worker_hours + more, cost)
    cost = None if used.cost is None else used.cost / ahead.share
    return Usage(used.hours + ahead.left_s / 3600, used.worker_hours / ahead.share, cost)


def spending(used: Usage, ahead: Estimate) -> str:
    """Used so far, and about how much of how much; empty before anything was used."""
    if not used.worker_hours:
        return ""
    whole = expected(used, ahead)
    hours, cost = _hours(used.worker_hours), "" if used.cost is None else _cost(used.cost)
    if whole is None or ahead.share >= 1:
        return f"worker-hours {hours}" + (f", cost {cost}" if cost else "")
    about = f"worker-hours {hours} of about {_hours(whole.worker_hours)}"
    return about + (f", cost {cost} of about {_cost(whole.cost or 0.0)}" if cost else "")


def usage_lines(used: Usage) -> list[str]:
    """What a run has used in all, for its closing lines; none for a run whose journal has no times."""
    if not used.worker_hours:
        return []
    cost = "" if used.cost is None else f", cost {_cost(used.cost)}"
    return [f"used {figures.duration(used.hours * 3600)}, {_hours(used.worker_hours)} worker-hours{cost}"]


def stopping_line(reason: str) -> str:
    """What happens between the request to stop and the end."""
    again = "; again to stop at once" if reason == "interrupt" else ""
    return f"stopping ({reason}): every running trial commits its step{again}"


def ended_by_budget(words: Sequence[str], setting: str, used: float) -> str:
    """That the budget ended it and how to go on: the words after `tlcore` as they were given, with a higher one."""
    kept = [word for at, word in enumerate(words) if not _sets(setting, words, at)]
    _, _, again = resume_line(kept).partition("to resume: ")
    return (
        f"{setting} ended it after {used:.4g}; what is unfinished goes on with a higher one: "
        f"{again} --set {setting}=<hours>"
    )


def _sets(setting: str, words: Sequence[str], at: int) -> bool:
    """Whether the word, or the pair that it begins or ends, sets this setting."""
    given = f"{setting}="
    follows = at > 0 and words[at - 1] == "--set" and words[at].startswith(given)
    begins = words[at] == "--set" and at + 1 < len(words) and words[at + 1].startswith(given)
    return follows or begins or words[at].startswith(f"--set={given}")


def _hours(hours: float) -> str:
    return f"{hours:.3g}" if hours >= 0.001 else f"{hours:.1g}"


def _cost(cost: float) -> str:
    return f"{cost:,.2f}" if cost >= 0.1 or cost == 0 else f"{cost:.2g}"
