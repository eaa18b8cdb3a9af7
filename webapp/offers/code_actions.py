"""Assign, replace, close and reopen the codes of an offer."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Iterator

from flask_babel import gettext as _
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from webapp.accounts.audit import record_audit_entry
from webapp.core import database_clock
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.offers import queries as offer_queries
from webapp.offers.models import MAX_CODE_LENGTH, MIN_CODE_LENGTH, Offer, OfferCode, normalise_code

# Excludes 0, O, 1, I and L, which are easily confused.
GENERATED_ALPHABET = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"


def generate_code() -> str:
    """Generate a code that is easy to read, such as K7QM-4XWT."""
    characters = "".join(secrets.choice(GENERATED_ALPHABET) for _index in range(8))
    return f"{characters[:4]}-{characters[4:]}"


def list_candidate_codes(code: str | None) -> list[str]:
    """Return the requested code; a few generated ones if it is None.

    Several are generated, because some may be taken.
    """
    return [code] if code else [generate_code() for _index in range(5)]


def renew_code(offer_id: int, code: str | None, by: str, version: int | None = None) -> Offer:
    """Assign another code to an offer. Commits.

    The previous code stays valid as an alias until `close_code`, because emails and posters contain it. An alias of the
    offer can become its code again. Before the offer is frozen (see `Offer.frozen_at`), the previous code is replaced
    and becomes available again. Assigning the code that the offer already has changes nothing.

    :param code: the code as displayed; None generates one.
    :param by: the actor, for the audit log.
    :param version: the version that the change is based on; None accepts any.
    :raises NotFound: when the offer does not exist.
    :raises DomainError: `conflict` when the offer has another version.
    :raises InvalidInput: `code_taken`, `code_closed` when it is a closed code of this offer, `code_length`,
        `code_invalid`.
    """
    offer = _lock_offer(offer_id)
    check_version(offer, version)
    errors = list(code_errors(code))
    if errors:
        raise InvalidInput(*errors)
    before = offer.code_as_written
    if not any(_assign_code(offer, candidate) for candidate in list_candidate_codes(code)):
        raise code_taken_error()
    if offer.code_as_written != before:
        offer.version += 1
        record_audit_entry(by, "offer.code_renewed", offer.code_as_written, before=before)
    db.session.commit()
    return offer


def close_code(offer_id: int, code: str, by: str) -> Offer:
    """Close an alias: it is no longer accepted. Idempotent. Commits.

    The personal codes made from it are no longer accepted either. A closed code never becomes available to another
    offer.

    :raises NotFound: when the offer does not exist or never had this code.
    :raises DomainError: `conflict` when it is the current code of the offer.
    """
    offer = _lock_offer(offer_id)
    offer_code = _require_code(offer, code)
    if offer_code.code == offer.code:
        raise DomainError(
            "conflict",
            _(
                "%(code)s is the current code. Replace the code first, then close this one.",
                code=offer_code.code_as_written,
            ),
            409,
        )
    if offer_code.closed_at is None:
        offer_code.closed_at = database_clock.get_database_time()
        offer.version += 1
        record_audit_entry(by, "offer.code_closed", offer_code.code_as_written, offer=offer.code_as_written)
    db.session.commit()
    return offer


def reopen_code(offer_id: int, code: str, by: str) -> Offer:
    """Reopen a closed code: it is accepted again, as an alias. Idempotent. Commits.

    :raises NotFound: when the offer does not exist or never had this code.
    """
    offer = _lock_offer(offer_id)
    offer_code = _require_code(offer, code)
    if offer_code.closed_at is not None:
        offer_code.closed_at = None
        offer.version += 1
        record_audit_entry(by, "offer.code_reopened", offer_code.code_as_written, offer=offer.code_as_written)
    db.session.commit()
    return offer


def check_version(offer: Offer, version: int | None) -> None:
    """Check that the offer still has the version that a change is based on.

    :param version: None accepts any version.
    :raises DomainError: `conflict` when the offer has another version.
    """
    if version is not None and offer.version != version:
        raise DomainError(
            "conflict",
            _(
                "This offer was changed after you opened it. "
                "Review the current values, then save again if yours should replace them."
            ),
            409,
        )


def reserve_code(offer_id: int, code: str, code_as_written: str) -> bool:
    """Reserve a code for an offer permanently.

    :returns: whether that succeeded; False when the code is taken, even by a concurrent transaction.
    """
    statement = insert(OfferCode).values(offer_id=offer_id, code=code, code_as_written=code_as_written)
    return db.session.scalar(statement.on_conflict_do_nothing().returning(OfferCode.code)) is not None


def replace_code(before: str, code: str, code_as_written: str) -> None:
    """Replace a code, or its spelling, by another. The caller commits.

    The replaced code becomes available again, because it was never published.

    :raises IntegrityError: for the constraint `pk_offer_code` when the new code is taken.
    """
    db.session.execute(
        update(OfferCode).where(OfferCode.code == before).values(code=code, code_as_written=code_as_written)
    )


def clean_display_code(code: str) -> str:
    """Return a code as it is displayed: NFKC-normalised, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", code).split())


def code_errors(code: str | None) -> Iterator[FieldError]:
    """Yield the errors of a requested code."""
    if code is None:
        return
    try:
        length = len(normalise_code(code))
    except InvalidInput as error:
        yield from error.errors
        return
    if not MIN_CODE_LENGTH <= length <= MAX_CODE_LENGTH or len(code) > 2 * MAX_CODE_LENGTH:
        yield FieldError(
            "code",
            "code_length",
            _("A code must have %(min)s to %(max)s letters and digits.", min=MIN_CODE_LENGTH, max=MAX_CODE_LENGTH),
        )


def code_taken_error() -> InvalidInput:
    """Return the error for a code that another offer has or had."""
    return InvalidInput(
        FieldError(
            "code",
            "code_taken",
            _(
                "This code belongs to another offer, or did in the past. "
                "Choose another one, or leave it empty to generate one."
            ),
        )
    )


def _assign_code(offer: Offer, requested: str) -> bool:
    """Assign a code to the offer; return False when another offer has or had it."""
    code, display_code = normalise_code(requested), clean_display_code(requested)
    existing = offer_queries.find_offer_code(offer.id, code)
    if existing is not None and existing.closed_at is not None:
        message = _("This code of the offer is closed. Reopen it, or choose another one.")
        raise InvalidInput(FieldError("code", "code_closed", message))
    if existing is None and offer.frozen_at is not None:
        if not reserve_code(offer.id, code, display_code):
            return False
    else:
        try:
            with db.session.begin_nested():
                replace_code(offer.code if existing is None else code, code, display_code)
        except IntegrityError:
            return False
    offer.code, offer.code_as_written = code, display_code
    return True


def _lock_offer(offer_id: int) -> Offer:
    offer = offer_queries.lock_offer(offer_id)
    if offer is None:
        raise NotFound(_("This offer does not exist."))
    return offer


def _require_code(offer: Offer, code: str) -> OfferCode:
    try:
        offer_code = offer_queries.find_offer_code(offer.id, normalise_code(code))
    except InvalidInput:
        offer_code = None
    if offer_code is None:
        raise NotFound(_("This offer never had this code."))
    return offer_code
