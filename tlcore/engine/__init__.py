"""DeepSpeed behind one class: a sharded model that steps, evaluates, and hands its ZeRO state over as intervals.

The only room that imports deepspeed, and only inside its functions' modules, never here: `process.py` must be able to settle the
process first.
"""
