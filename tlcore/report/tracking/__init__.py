"""Curves of a sweep where people compare runs: TensorBoard, MLflow, Weights & Biases, as the recipe's `track` names them.

`curves.py` turns what a display is told into calls of a board, `behind.py` makes those calls in a thread, `tensorboard.py`,
`mlflow.py` and `wandb.py` are the boards, `displays.py` puts them beside the live table. Called by the commands. No rank and no
trial waits for a board, and whatever one loses can be had again: the journal in the store has every report.
"""

from tlcore.report.tracking.displays import tracked

__all__ = ["tracked"]
