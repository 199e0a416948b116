"""Training one trial on one rank: under Ray, under torchrun, or alone in one process. Knows nothing of Ray.

Read in this order: `session.py` (one trial, start to end), `stepper.py` (one optimizer step), `saving.py`, `local.py`.
"""

from tlcore.train.progress import Progress, Report
from tlcore.train.session import TrialSession

__all__ = ["Progress", "Report", "TrialSession"]
