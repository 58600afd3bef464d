"""Bars on a terminal."""

from __future__ import annotations

import io
import sys

from router.progress import progress_bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_alone(monkeypatch):
    for kind, drawn in ((Terminal, True), (io.StringIO, False)):
        shown = kind()
        monkeypatch.setattr(sys, "stderr", shown)
        with progress_bars() as progress:
            for done in (0, 500, 800):
                progress("adapter_model.safetensors", done, 800)
        assert ("adapter_model.safetensors" in shown.getvalue() and "100%" in shown.getvalue()) is drawn
