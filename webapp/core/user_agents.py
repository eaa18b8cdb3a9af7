"""Names of browsers and systems, derived from the User-Agent header (RFC 9110, section 10.1.5)."""

from __future__ import annotations

import re

from flask_babel import gettext as _

MAX_USER_AGENT_LENGTH = 300

# The first match counts: most browsers also claim to be the ones below them.
_BROWSERS = (
    ("Edge", r"\bEdg(?:e|A|iOS)?/"),
    ("Opera", r"\bOPR/|\bOpera\b"),
    ("Samsung Internet", r"\bSamsungBrowser/"),  # no translation
    ("Firefox", r"\b(?:Firefox|FxiOS)/"),
    ("Chrome", r"\b(?:Headless)?(?:Chrome|CriOS|Chromium)/"),
    ("Safari", r"\bVersion/[\d.]+.* Safari/"),
)
_SYSTEMS = (
    ("iPhone", r"\biPhone\b"),
    ("iPad", r"\biPad\b"),
    ("Android", r"\bAndroid\b"),
    ("Windows", r"\bWindows\b"),
    ("macOS", r"\bMac OS X\b|\bMacintosh\b"),
    ("ChromeOS", r"\bCrOS\b"),
    ("Linux", r"\bLinux\b"),
)


def clean_user_agent(header: str) -> str:
    """Return a User-Agent header as text that can be stored and shown.

    :param header: as WSGI passes it: bytes decoded as Latin-1, of any length. Characters that are not printable become
        spaces.
    """
    text = header[: 4 * MAX_USER_AGENT_LENGTH].encode("latin-1", "replace").decode("utf-8", "replace")
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:MAX_USER_AGENT_LENGTH]


def describe_user_agent(user_agent: str) -> str:
    """Return browser and system, such as `Firefox on Windows`.

    :param user_agent: a cleaned header; it is returned unchanged if the browser is unknown.
    """
    browser, system = _find_name(_BROWSERS, user_agent), _find_name(_SYSTEMS, user_agent)
    if browser is None:
        return user_agent or _("Unknown browser")
    return _("%(browser)s on %(system)s", browser=browser, system=system) if system else browser


def _find_name(patterns: tuple[tuple[str, str], ...], user_agent: str) -> str | None:
    return next((name for name, pattern in patterns if re.search(pattern, user_agent)), None)
