"""Which trial goes on: Tune's schedulers over `seats.py`, which the journal drives, with what Tune leaves broken put right.

Called by the driver and by `conductor.py`.
"""
