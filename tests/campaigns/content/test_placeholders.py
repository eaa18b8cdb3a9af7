"""The default content of reminders."""

from __future__ import annotations

import pytest
from flask import Flask

from webapp.campaigns.content.placeholders import (
    REMINDER_SUBJECT,
    REMINDER_TEXT,
    EmailContent,
    with_default_content,
)


@pytest.mark.parametrize(
    ("content", "subject", "text"),
    [
        (EmailContent(), str(REMINDER_SUBJECT), str(REMINDER_TEXT)),
        (EmailContent(subject="Hi"), "Hi", str(REMINDER_TEXT)),
        (EmailContent(text="Hello"), str(REMINDER_SUBJECT), "Hello"),
        (EmailContent("Hi", "Hello", "<p>Hello"), "Hi", "Hello"),
        # The text is derived from the HTML.
        (EmailContent(html="<p>Hello"), str(REMINDER_SUBJECT), ""),
    ],
)
def test_only_a_reminder_gets_the_content_that_it_lacks(
    app: Flask, content: EmailContent, subject: str, text: str
) -> None:
    assert with_default_content(content, "reminder") == EmailContent(subject, text, content.html)
    assert with_default_content(content, "announcement") == content
