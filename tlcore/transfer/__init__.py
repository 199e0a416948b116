"""What of a model trains, and at which rates.

`structure.py` finds blocks and head in any model, `naming.py` the parts that a recipe names, `strategies.py` freezes by the
recipe's strategy, `schedule.py` says when frozen parts join, `groups.py` makes the optimizer's parameter groups. Called by
`train/`.
"""

from tlcore.transfer.groups import parameter_groups
from tlcore.transfer.schedule import joining
from tlcore.transfer.strategies import apply_strategy, set_training_mode
from tlcore.transfer.structure import Structure, read_structure

__all__ = ["Structure", "apply_strategy", "joining", "parameter_groups", "read_structure", "set_training_mode"]
