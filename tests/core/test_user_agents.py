"""Browsers and systems are recognised by their User-Agent header."""

from __future__ import annotations

import pytest
from flask import Flask

from webapp.core.user_agents import clean_user_agent, describe_user_agent

WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"


@pytest.mark.parametrize(
    ("user_agent", "expected"),
    [
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:141.0) Gecko/20100101 Firefox/141.0", "Firefox on Windows"),
        (f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/140.0 Safari/537.36", "Chrome on Windows"),
        (f"Mozilla/5.0 (Windows NT 10.0) {WEBKIT} Chrome/140.0 Safari/537.36 Edg/140.0", "Edge on Windows"),
        (
            f"Mozilla/5.0 (Linux; Android 10; K) {WEBKIT} Chrome/140.0 Mobile Safari/537.36 EdgA/140.0",
            "Edge on Android",
        ),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) FxiOS/141.0 Safari/605.1.15", "Firefox on iPhone"),
        ("Opera/9.80 (Macintosh; PPC) Version/12.16", "Opera on macOS"),
        (f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} HeadlessChrome/140.0 Safari/537.36", "Chrome on Linux"),
        (f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {WEBKIT} Chrome/140.0 Safari/537.36", "Chrome on ChromeOS"),
        (f"Mozilla/5.0 (Linux; Android 10; K) {WEBKIT} Chrome/140.0 Mobile Safari/537.36", "Chrome on Android"),
        (
            f"Mozilla/5.0 (Linux; Android 10; K) {WEBKIT} SamsungBrowser/28.0 Chrome/130.0 Mobile Safari/537.36",
            "Samsung Internet on Android",
        ),
        (f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Chrome/140.0 OPR/121.0", "Opera on macOS"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) Version/18.5 Safari/605.1.15", "Safari on macOS"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) Version/18.5 Safari/604.1", "Safari on iPhone"),
        ("Mozilla/5.0 (iPad; CPU OS 18_5 like Mac OS X) CriOS/140.0 Mobile Safari/604.1", "Chrome on iPad"),
        ("Firefox/141.0", "Firefox"),
        ("curl/8.5.0", "curl/8.5.0"),
        ("Windows 95", "Windows 95"),
        ("", "Unknown browser"),
    ],
)
def test_browser_and_system_are_named(app: Flask, user_agent: str, expected: str) -> None:
    assert describe_user_agent(user_agent) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("curl/8.5.0", "curl/8.5.0"),
        ("  a \t\r\n b  ", "a b"),
        ("a\0b\x1b[31mc", "a b [31mc"),
        ("safe\u202egpj.exe".encode().decode("latin-1"), "safe gpj.exe"),
        ("☕ 😀".encode().decode("latin-1"), "☕ 😀"),
        ("\xff", "\ufffd"),
        ("x" * 8192, "x" * 300),
        ("ü".encode().decode("latin-1") * 8192, "ü" * 300),
        ("\0" * 8192, ""),
    ],
)
def test_a_header_is_cleaned(header: str, expected: str) -> None:
    assert clean_user_agent(header) == expected
