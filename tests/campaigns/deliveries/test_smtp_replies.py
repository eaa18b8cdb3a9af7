"""What the replies of mail servers mean."""

from __future__ import annotations

import pytest
from flask import Flask

from webapp.campaigns.deliveries.smtp_replies import capitalise_first, explain_reply


@pytest.mark.parametrize(
    ("code", "enhanced_status", "meaning"),
    [
        (550, "5.1.1", "There is no such mailbox"),
        (450, "4.2.2", "The mailbox is full"),
        # The subject of an unknown code, then the reply code.
        (550, "5.1.99", "Something is wrong with the address"),
        (550, "5.9.9", "The mailbox is unavailable, or the email is rejected"),
        (421, "", "The receiving server is shutting down or temporarily unavailable"),
        (450, "", "The mailbox is unavailable at the moment"),
        (451, "", "The receiving server asks to retry later"),
        (452, "", "The receiving server has no storage space left"),
        (550, "", "The mailbox is unavailable, or the email is rejected"),
        (551, "", "The mailbox is on another server"),
        (552, "", "The mailbox is full, or the email is too large"),
        (553, "", "The address is rejected"),
        (554, "", "The email is rejected"),
        (555, "", "The parameters of the address are not supported"),
        (499, "", None),
        (499, "4.9.9", None),
        (None, "5.1.1", None),
    ],
)
def test_a_reply_is_explained_by_its_most_specific_code(
    app: Flask, code: int | None, enhanced_status: str, meaning: str | None
) -> None:
    assert explain_reply(code, enhanced_status) == meaning


@pytest.mark.parametrize(("text", "capitalised"), [("", ""), ("a", "A"), ("no such user", "No such user")])
def test_the_first_letter_is_capitalised(text: str, capitalised: str) -> None:
    assert capitalise_first(text) == capitalised
