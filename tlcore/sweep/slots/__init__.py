"""Slots: the actors that Tune drives, the warm worker groups behind them, and what their losses cost.

`slot.py` is the `Trainable`, `group.py` its Ray Train run, `worker.py` what every rank does; they talk through `mailbox.py` and
`board.py`. `failures.py` and `recovery.py` decide what a loss means. Called by `sweep/driver.py` and its neighbours. Must stay
light: slots import it, and load no torch.
"""
