"""The codes of an offer: the one that is given out now, those that were before, and those that are closed."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Iterator

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from webapp.accounts.actions import record_audit_entry
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.offers import queries as offer_queries
from webapp.offers.models import CODE_MAX, CODE_MIN, Offer, OfferCode, normalise_code

# Nobody mistakes one of these for another, on paper or on the phone: no 0 O 1 I L.
GENERATED_ALPHABET = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"


def generate_code() -> str:
    """A code nobody misreads, such as K7QM-4XWT."""
    letters = [secrets.choice(GENERATED_ALPHABET) for _ in range(8)]
    return f"{''.join(letters[:4])}-{''.join(letters[4:])}"


def candidate_codes(code: str | None) -> list[str]:
    """The code that was asked for; or, when none was, a few made up, one of which will be free."""
    return [code] if code else [generate_code() for _ in range(5)]


def renew_code(offer_id: int, code: str | None, by: str, version: int | None = None) -> Offer:
    """Give an offer another code. Commits.

    The one before stays an alias that works everywhere, for mails and posters have it, until `close_code`. An alias of
    this offer can become its code again. As long as nobody was given the code (see `Offer.frozen_at`) it is simply
    replaced and free again. Asking for the code that it has changes nothing.

    :param code: as it shall be written; None has one generated.
    :param version: the version the change was made from; None takes whatever stands now.
    :raises NotFound: when there is no such offer.
    :raises DomainError: `conflict` when somebody else has changed the offer since.
    :raises Invalid: `code_taken`, `code_closed` when it is one of its own that was closed, `code_length`,
        `code_invalid`.
    """
    offer = _lock_offer(offer_id)
    check_version(offer, version)
    errors = list(code_errors(code))
    if errors:
        raise InvalidInput(*errors)
    before = offer.code_as_written
    if not any(_assign_code(offer, wanted) for wanted in candidate_codes(code)):
        raise code_taken_error()
    if offer.code_as_written != before:
        offer.version += 1
        record_audit_entry(by, "offer.code_renewed", offer.code_as_written, before=before)
    db.session.commit()
    return offer


def close_code(offer_id: int, code: str, by: str) -> Offer:
    """End an alias: from now on it works nowhere, nor do the personal codes made of it. It stays taken for ever.
    Closing a closed one changes nothing. Commits.

    :raises NotFound: when there is no such offer, or it never had this code.
    :raises DomainError: `conflict` when it is the offer's code now.
    """
    offer = _lock_offer(offer_id)
    row = _require_code(offer, code)
    if row.code == offer.code:
        raise DomainError(
            "conflict",
            f"{row.code_as_written} is the offer's code now. Renew the code first, then close this one.",
            409,
        )
    if row.closed_at is None:
        row.closed_at = offer_queries.database_now()
        offer.version += 1
        record_audit_entry(by, "offer.code_closed", row.code_as_written, offer=offer.code_as_written)
    db.session.commit()
    return offer


def reopen_code(offer_id: int, code: str, by: str) -> Offer:
    """Let a closed code work again, as an alias. Reopening an open one changes nothing. Commits.

    :raises NotFound: when there is no such offer, or it never had this code.
    """
    offer = _lock_offer(offer_id)
    row = _require_code(offer, code)
    if row.closed_at is not None:
        row.closed_at = None
        offer.version += 1
        record_audit_entry(by, "offer.code_reopened", row.code_as_written, offer=offer.code_as_written)
    db.session.commit()
    return offer


def check_version(offer: Offer, version: int | None) -> None:
    """Nothing, when the offer still is as it was when the change was made.

    :raises DomainError: `conflict`.
    """
    if version is not None and offer.version != version:
        raise DomainError(
            "conflict",
            "Somebody else has changed this offer in the meantime. "
            "Look at what it says now, then save yours again if it should still replace it.",
            409,
        )


def reserve_code(offer_id: int, code: str, code_as_written: str) -> bool:
    """Take a code for an offer, for ever; False when it was taken before, perhaps at this very moment."""
    statement = insert(OfferCode).values(offer_id=offer_id, code=code, code_as_written=code_as_written)
    return db.session.scalar(statement.on_conflict_do_nothing().returning(OfferCode.code)) is not None


def replace_code(before: str, code: str, code_as_written: str) -> None:
    """Another code, or spelling, in place of the one before, which is free again: nobody was given it yet.

    :raises IntegrityError: of `pk_offer_code` when it is taken.
    """
    db.session.execute(
        update(OfferCode).where(OfferCode.code == before).values(code=code, code_as_written=code_as_written)
    )


def clean_display_code(code: str) -> str:
    """How a code is shown: as it was typed, in plain letters."""
    return " ".join(unicodedata.normalize("NFKC", code).split())


def code_errors(code: str | None) -> Iterator[FieldError]:
    """What is wrong with a code that somebody chose."""
    if code is None:
        return
    try:
        length = len(normalise_code(code))
    except InvalidInput as error:
        yield from error.errors
        return
    if not CODE_MIN <= length <= CODE_MAX or len(code) > 2 * CODE_MAX:
        yield FieldError("code", "code_length", f"A code has {CODE_MIN} to {CODE_MAX} letters and digits.")


def code_taken_error() -> InvalidInput:
    return InvalidInput(
        FieldError(
            "code",
            "code_taken",
            "Another offer has this code, perhaps one that has ended. Choose another, or leave it empty to get one.",
        )
    )


def _assign_code(offer: Offer, wanted: str) -> bool:
    """Make this the offer's code; False when another offer has, or had, it."""
    code, written = normalise_code(wanted), clean_display_code(wanted)
    own = offer_queries.find_offer_code(offer.id, code)
    if own is not None and own.closed_at is not None:
        raise InvalidInput(
            FieldError("code", "code_closed", "This code of the offer was closed. Reopen it, or take another.")
        )
    if own is None and offer.frozen_at is not None:
        if not reserve_code(offer.id, code, written):
            return False
    else:
        try:
            with db.session.begin_nested():
                replace_code(offer.code if own is None else code, code, written)
        except IntegrityError:
            return False
    offer.code, offer.code_as_written = code, written
    return True


def _lock_offer(offer_id: int) -> Offer:
    offer = offer_queries.lock_offer(offer_id)
    if offer is None:
        raise NotFound("There is no such offer.")
    return offer


def _require_code(offer: Offer, code: str) -> OfferCode:
    try:
        row = offer_queries.find_offer_code(offer.id, normalise_code(code))
    except InvalidInput:
        row = None
    if row is None:
        raise NotFound("This offer never had this code.")
    return row
