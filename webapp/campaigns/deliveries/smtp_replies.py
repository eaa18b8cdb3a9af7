"""What a mail server's answer means, in plain words."""

from __future__ import annotations

# Enhanced status codes without their class (RFC 3463, and the registry of RFC 5248).
_ENHANCED_STATUS_MEANINGS = {
    "1.0": "Something is wrong with the address",
    "1.1": "There is no such mailbox",
    "1.2": "The address's domain does not take mail",
    "1.3": "The address is not well formed",
    "1.4": "The address is ambiguous",
    "1.6": "The mailbox has moved",
    "1.7": "The sender's address is refused",
    "1.8": "The sender's domain is refused",
    "1.10": "The address's domain takes no mail at all",
    "2.0": "Something is wrong with the mailbox",
    "2.1": "The mailbox is closed or takes no mail",
    "2.2": "The mailbox is full",
    "2.3": "The mail is too large for the mailbox",
    "2.4": "The mailing list behind the address does not work",
    "3.0": "The receiving server has a problem",
    "3.1": "The receiving server has no room",
    "3.2": "The receiving server takes no mail at the moment",
    "3.4": "The mail is too large for the receiving server",
    "4.0": "The way to the receiving server has a problem",
    "4.1": "The receiving server does not answer",
    "4.2": "The connection to the receiving server broke",
    "4.3": "The domain's mail server could not be looked up",
    "4.4": "No way to the receiving server was found",
    "4.5": "The receiving server is overloaded",
    "4.6": "The mail goes round in circles",
    "4.7": "The receiving server could not be reached for too long",
    "5.0": "The servers did not understand each other",
    "5.1": "The servers did not understand each other",
    "5.2": "The servers did not understand each other",
    "5.3": "Too many recipients at once",
    "6.0": "The mail's form is refused",
    "7.0": "The receiving server refuses it as a matter of policy",
    "7.1": "The receiving server refuses the mail, often as spam",
    "7.8": "The relay does not accept our password",
    "7.20": "The mail's DKIM signature is missing or does not pass",
    "7.23": "The mail fails the receiver's SPF check",
    "7.25": "The relay's address has no name (reverse DNS)",
    "7.26": "The mail fails the receiver's checks of its sender",
    "7.27": "The sender's domain takes no mail",
}
# Replies without an enhanced code (RFC 5321, 4.2.3).
_REPLY_CODE_MEANINGS = {
    421: "The receiving server closes for the moment",
    450: "The mailbox can't be used at the moment",
    451: "The receiving server asks to come again later",
    452: "The receiving server has no room",
    550: "The mailbox can't be used, or the mail is refused",
    551: "The mailbox is elsewhere",
    552: "The mailbox is full, or the mail too large",
    553: "The address is refused",
    554: "The mail is refused",
    555: "The address is not understood",
}


def capitalise_first(words: str) -> str:
    """Words of ours or of somebody else as a line of its own: it begins with a capital."""
    return words[:1].upper() + words[1:]


def explain_reply(code: int | None, cause: str) -> str | None:
    """What an answer means; None where the words have to speak for themselves.

    :param code: the reply code (RFC 5321), None when there was no answer.
    :param cause: the enhanced status code, `5.1.1`; empty where the server gave none.
    """
    if code is None:
        return None
    of_class = cause.partition(".")[2]
    subject = of_class.partition(".")[0]
    return (
        _ENHANCED_STATUS_MEANINGS.get(of_class)
        or _ENHANCED_STATUS_MEANINGS.get(f"{subject}.0")
        or _REPLY_CODE_MEANINGS.get(code)
    )
