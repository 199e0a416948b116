"""Training data: reading it, holding some out, labels as numbers, and the order in which ranks see it.

`files.py` finds what a place names, `formats.py` reads each format block by block, `reading.py` makes tables of it, `on_node.py`
keeps what is too large for every process's memory on the node's disk (`growing.py` while it is made; `moving.py` says how far it
has got), `media.py` finds and opens samples that are files, `splitting.py` holds out validation samples, `labels.py` maps classes
to numbers, `order.py` says which samples form which step on which rank. Called by `tasks/` and `train/`.
"""

from tlcore.data.course import Course
from tlcore.data.files import find_files, fingerprint, hub_dataset
from tlcore.data.growing import GrowingArray
from tlcore.data.labels import encode_labels, find_label_names
from tlcore.data.media import MediaRows, Opener, bytes_read, read_media
from tlcore.data.moving import block_done, blocks_done
from tlcore.data.on_node import arrays_on_node, is_held
from tlcore.data.order import Order, permutation, split_batch
from tlcore.data.reading import class_names, content_stamp, read_split, read_text
from tlcore.data.splitting import hold_out

__all__ = [
    "Course",
    "GrowingArray",
    "MediaRows",
    "Opener",
    "Order",
    "arrays_on_node",
    "block_done",
    "blocks_done",
    "bytes_read",
    "class_names",
    "content_stamp",
    "encode_labels",
    "find_files",
    "find_label_names",
    "fingerprint",
    "hold_out",
    "hub_dataset",
    "is_held",
    "permutation",
    "read_media",
    "read_split",
    "read_text",
    "split_batch",
]
