"""Which trial is next: `source.py` is what Tune asks, `searchers.py` what it asks in turn, by algorithm.

Called by the driver.
"""
