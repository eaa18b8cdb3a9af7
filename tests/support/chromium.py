"""The installed Chromium."""

from __future__ import annotations

import shutil

# Milliseconds that actions and expectations wait for a page, also on a busy machine.
PATIENCE_MS = 90_000

# The headless shell, which has no windows, takes less than half of the processor time of the whole browser.
CHROMIUM_NAMES = (
    "chromium-headless-shell",
    "chrome-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """The path of the browser, or None where none is installed."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
