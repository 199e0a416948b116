"""The simulated sweep's arithmetic, and what its command refuses."""

from __future__ import annotations

import json

import pytest

from jobs.bench.sweep.__main__ import main
from jobs.bench.sweep.stub import CountingStore, Mark, Meter, stretches

pytestmark = pytest.mark.unit


def test_a_stretch_is_processor_time_by_result():
    marks = [Mark(0, 10.0, 200.0), Mark(100, 10.5, 201.0), Mark(200, 10.7, 202.0)]
    assert stretches(marks) == pytest.approx([5.0, 2.0])
    assert stretches(marks[:1]) == []


def test_the_meter_marks_the_run_by_tenths_and_leaves_out_what_is_over(tmp_path):
    meter = Meter(0, tmp_path / "figures.json", every=10)
    meter.store = CountingStore(None)
    meter.on_event({"kind": "started"})
    for _ in range(25):
        meter.on_event({"kind": "result"})
    meter.write()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["results"], figures["entries"]) == (25, 26)
    assert len(figures["driver_ms"]) == 2, "the last five are no stretch"
    assert len(figures["rss_mb"]) == 4


def test_fewer_results_than_trials_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--part", "simulate", "--simulate", "100", "--results", "99"])
    assert "each trial reports at least once" in capsys.readouterr().err
