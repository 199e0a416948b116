"""Several texts in one sample, so that no token is padding.

Owns which texts share a sample. Called by `text_generation.py`.
"""

from __future__ import annotations

import bisect

import numpy as np
import numpy.typing as npt


def pack(lengths: npt.NDArray[np.int32], capacity: int) -> list[npt.NDArray[np.int64]]:
    """Groups of texts whose lengths sum to `capacity` at most, every text in one of them, in a fixed order.

    Longest first, each into the fullest group that still takes it (best-fit decreasing, at most 11/9 of the fewest groups possible;
    Johnson 1973). A text longer than `capacity` is a group alone: texts are cut before.
    """
    groups: list[list[int]] = []
    groups_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # ascending, those with a group; at most `capacity` of them
    for index in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[index])
        place = bisect.bisect_left(rooms, size)
        if place == len(rooms):
            group, room = len(groups), capacity
            groups.append([])
        else:
            room = rooms[place]
            group = groups_by_room[room].pop()
            if not groups_by_room[room]:
                del rooms[place]
        groups[group].append(index)
        left = max(0, room - size)
        if not groups_by_room.setdefault(left, []):
            bisect.insort(rooms, left)
        groups_by_room[left].append(group)
    return [np.array(group, dtype=np.int64) for group in groups]
