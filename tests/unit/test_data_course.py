"""A trial whose global batch changes on the way: every sample of every epoch still exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlcore.data import Course, Order

pytestmark = pytest.mark.unit


@st.composite
def courses(draw):
    samples, epochs = draw(st.integers(1, 60)), draw(st.integers(1, 3))
    lengths = draw(st.none() | st.lists(st.integers(1, 9), min_size=samples, max_size=samples))
    seed = draw(st.integers(0, 5))
    legs = [(0, draw(st.integers(1, 20)))]
    for _ in range(draw(st.integers(0, 4))):
        so_far = Course(samples, epochs, seed, lengths, legs)
        first = legs[-1][0]
        legs.append((draw(st.integers(first, so_far.total_steps)), draw(st.integers(1, 20))))
    return Course(samples, epochs, seed, lengths, legs)


@given(courses())
def test_each_epoch_takes_every_sample_once_whatever_the_batches_were(course):
    taken = np.concatenate([course.batch(step) for step in range(course.total_steps)])
    assert len(taken) == course.samples * course.epochs
    for epoch in range(course.epochs):
        part = taken[epoch * course.samples : (epoch + 1) * course.samples]
        assert sorted(part.tolist()) == list(range(course.samples))


@given(courses())
def test_what_was_trained_before_a_change_stays_as_it_was(course):
    for count in range(1, len(course.legs)):
        before = Course(course.samples, course.epochs, course.seed, course._lengths, course.legs[:count])
        for step in range(course.legs[count][0]):
            assert before.batch(step).tolist() == course.batch(step).tolist()


@given(courses(), st.floats(0, 1))
def test_a_fraction_is_reached_in_the_last_leg_and_the_whole_at_its_end(course, fraction):
    first = course.legs[-1][0]
    assert first <= course.step_at(fraction) <= course.total_steps
    assert course.step_at(1.0) == course.total_steps


@given(courses())
def test_the_schedule_goes_on_at_the_share_of_samples_seen(course):
    first, last = course.legs[-1][0], max(course.legs[-1][0], course.total_steps - 1)
    seen = sum(len(course.batch(step)) for step in range(first)) / (course.samples * course.epochs)
    place, whole = course.schedule(first)
    assert place / whole == pytest.approx(seen)
    assert whole == course.epochs * -(-course.samples // course.legs[-1][1])
    assert place <= course.schedule(last)[0] <= whole


def test_without_a_change_it_is_the_plain_order():
    lengths = [(7 * index) % 11 + 1 for index in range(50)]
    course, order = Course(50, 2, 3, lengths, [(0, 8)]), Order(50, 8, 3, lengths)
    assert course.total_steps == 14
    for step in range(14):
        assert course.batch(step).tolist() == order.batch(step).tolist()
        assert course.schedule(step) == (step, 14)
    assert [course.step_at(fraction) for fraction in (0.25, 0.5, 1.0)] == [4, 7, 14]


def test_a_step_of_the_new_batch_has_its_longest_first():
    lengths = list(range(1, 41))
    course = Course(40, 1, 0, lengths, [(0, 4), (3, 14)])
    for step in range(3, course.total_steps):
        taken = [lengths[index] for index in course.batch(step)]
        assert taken == sorted(taken, reverse=True)
        assert len(taken) == 14
    assert course.total_steps == 5
