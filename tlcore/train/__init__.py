"""Training one trial on one rank: under Ray, under torchrun, or alone in one process. Knows nothing of Ray.

Read in this order: `session.py` (one trial, start to end), `stepper.py` (one optimizer step), `saving.py`, `local.py`.
Imports nothing here: `engine/process.py` must have settled the process before torch and DeepSpeed are loaded.
"""
