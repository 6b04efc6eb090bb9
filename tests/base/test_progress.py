"""How far a job is: bytes that are counted, and bars for those who look on."""

import io
import os
import sys

from analyzer.base.progress import Estimates, counted, duration, progress_bars


def drawn(monkeypatch, *told, terminal=True, quiet=False):
    """Return what is drawn on stderr for these calls."""
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    with monkeypatch.context() as context:
        context.setattr(sys, "stderr", stderr)
        with progress_bars(quiet) as progress:
            for each in told:
                progress(*each)
    return stderr.getvalue()


def test_bytes_add_up():
    told = []
    advance = counted(lambda *what: told.append(what), "scan", 10)
    for count in (3, 0, 7):
        advance(count)
    assert told == [("scan", 3, 10), ("scan", 3, 10), ("scan", 10, 10)]


def test_each_thing_done_has_a_bar(monkeypatch):
    text = drawn(monkeypatch, ("scan", 0, 2000), ("scan", 2000, 2000), ("prompts", 3, 12))
    bars = text.split("\r")
    assert any(bar.startswith("scan:   0%") and "0.00/2.00k [" in bar and "B/s" in bar for bar in bars)
    assert any(bar.startswith("prompts:") and "/12 [" in bar and "B/s" not in bar for bar in bars)
    assert bars[-1] == ""  # no bar stays
    assert bars[-2].strip() == ""


def test_nothing_is_drawn_where_nobody_looks_on(monkeypatch):
    assert drawn(monkeypatch, ("scan", 1, 2), terminal=False) == ""


def test_quiet_silences_the_hubs_client_too(monkeypatch):
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    assert drawn(monkeypatch, ("scan", 1, 2), quiet=True) == ""
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_a_line_says_now_and_then_how_long_it_will_take():
    told, now = [], [0.0]
    estimate = Estimates(told.append, lambda: now[0])
    for second in range(0, 4001, 10):  # of 40,000, at one a second
        now[0] = second
        estimate("evaluation text", second, 40_000)
    assert told[:2] == [
        "evaluation text: 0% done, about 11 hours left",
        "evaluation text: 2% done, about 11 hours left",
    ]
    assert len(told) == 7  # one each ten minutes


def test_what_is_soon_done_is_not_spoken_of():
    told, now = [], [0.0]
    estimate = Estimates(told.append, lambda: now[0])
    for what in ("scan", "prompts"):
        for second in range(0, 110, 10):
            now[0] += 10
            estimate(what, second, 110)
    assert told == []
    assert [duration(seconds) for seconds in (20, 90, 5000, 7200, 200_000)] == [
        "1 min", "2 min", "83 min", "2 hours", "2 days",
    ]  # fmt: skip
