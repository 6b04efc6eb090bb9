"""How far a job is: bytes that are counted, and bars for those who look on."""

import io
import os
import sys

from analyzer.base.progress import counted, progress_bars


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
