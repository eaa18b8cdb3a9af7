"""The meanings of replies of mail servers, in plain sentences."""

from __future__ import annotations

from flask_babel import lazy_gettext as _l

# Enhanced status codes without their class (RFC 3463, and the registry of RFC 5248).
_ENHANCED_STATUS_MEANINGS: dict[str, str] = {
    "1.0": _l("Something is wrong with the address"),
    "1.1": _l("There is no such mailbox"),
    "1.2": _l("The domain does not accept email"),
    "1.3": _l("The address is malformed"),
    "1.4": _l("The address is ambiguous"),
    "1.6": _l("The mailbox has moved"),
    "1.7": _l("The sender's address is rejected"),
    "1.8": _l("The sender's domain is rejected"),
    "1.10": _l("The domain accepts no email at all"),
    "2.0": _l("Something is wrong with the mailbox"),
    "2.1": _l("The mailbox is disabled or accepts no email"),
    "2.2": _l("The mailbox is full"),
    "2.3": _l("The email is too large for the mailbox"),
    "2.4": _l("The mailing list behind the address does not work"),
    "3.0": _l("The receiving server has a problem"),
    "3.1": _l("The receiving server has no storage space left"),
    "3.2": _l("The receiving server does not accept email at the moment"),
    "3.4": _l("The email is too large for the receiving server"),
    "4.0": _l("There is a network problem on the way to the receiving server"),
    "4.1": _l("The receiving server does not answer"),
    "4.2": _l("The connection to the receiving server was lost"),
    "4.3": _l("The DNS lookup of the domain's mail server failed"),
    "4.4": _l("No route to the receiving server was found"),
    "4.5": _l("The receiving server is overloaded"),
    "4.6": _l("A mail loop was detected"),
    "4.7": _l("The receiving server was unreachable for too long"),
    "5.0": _l("The servers reported a protocol error"),
    "5.1": _l("The servers reported a protocol error"),
    "5.2": _l("The servers reported a protocol error"),
    "5.3": _l("Too many recipients at once"),
    "6.0": _l("The format of the email is rejected"),
    "7.0": _l("The receiving server rejects the email by policy"),
    "7.1": _l("The receiving server rejects the email, often as spam"),
    "7.8": _l("The relay rejects the credentials"),
    "7.20": _l("The DKIM signature of the email is missing or invalid"),
    "7.23": _l("The email fails the receiver's SPF check"),
    "7.25": _l("The relay's IP address has no reverse DNS name"),
    "7.26": _l("The email fails the receiver's sender authentication (SPF and DKIM)"),
    "7.27": _l("The sender's domain accepts no email"),
}
# Replies without an enhanced code (RFC 5321, 4.2.3).
_REPLY_CODE_MEANINGS: dict[int, str] = {
    421: _l("The receiving server is shutting down or temporarily unavailable"),
    450: _l("The mailbox is unavailable at the moment"),
    451: _l("The receiving server asks to retry later"),
    452: _l("The receiving server has no storage space left"),
    550: _l("The mailbox is unavailable, or the email is rejected"),
    551: _l("The mailbox is on another server"),
    552: _l("The mailbox is full, or the email is too large"),
    553: _l("The address is rejected"),
    554: _l("The email is rejected"),
    555: _l("The parameters of the address are not supported"),
}


def capitalise_first(text: str) -> str:
    """Capitalise the first letter of a text, such as a server's reply."""
    return text[:1].upper() + text[1:]


def explain_reply(code: int | None, enhanced_status: str) -> str | None:
    """Explain a reply; None if its meaning is unknown.

    :param code: the reply code (RFC 5321), None when there was no reply.
    :param enhanced_status: the enhanced status code such as `5.1.1`, empty if the server sent none.
    """
    if code is None:
        return None
    subject_and_detail = enhanced_status.partition(".")[2]
    subject = subject_and_detail.partition(".")[0]
    meaning = (
        _ENHANCED_STATUS_MEANINGS.get(subject_and_detail)
        or _ENHANCED_STATUS_MEANINGS.get(f"{subject}.0")
        or _REPLY_CODE_MEANINGS.get(code)
    )
    return None if meaning is None else str(meaning)
