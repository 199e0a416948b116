"""The kernel's count of its kills for want of memory, as containers and machines have it."""

from __future__ import annotations

import pytest

from tlcore.sweep.slots.kernel import has_killed, oom_kills

pytestmark = pytest.mark.unit


def written(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_containers_own_count_comes_before_the_machines(tmp_path):
    assert oom_kills(str(tmp_path)) is None
    written(tmp_path, "proc/vmstat", "nr_free_pages 10\noom_kill 7\ndrop_pagecache 0\n")
    assert oom_kills(str(tmp_path)) == 7
    written(tmp_path, "sys/fs/cgroup/memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n")
    assert oom_kills(str(tmp_path)) == 2


@pytest.mark.parametrize(
    ("before", "now", "killed"), [(2, 3, True), (2, 2, False), (None, 3, False), (2, None, False), (0, 1, True)]
)
def test_a_count_that_grew_is_a_kill(before, now, killed):
    assert has_killed(before, now) is killed
