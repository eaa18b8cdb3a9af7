"""Actions on audiences."""

from __future__ import annotations

from flask_babel import gettext as _
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from webapp.accounts.audit import record_audit_entry
from webapp.core.errors import FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.models import Audience
from webapp.customers.validation import clean_audience_name


def create_audience(name: str, by: str) -> Audience:
    """Create an empty audience. Commits.

    :raises InvalidInput: when the name is empty, too long or taken by another audience.
    """
    audience = Audience(name=_require_free_audience_name(name, None))
    db.session.add(audience)
    _flush_audience()
    record_audit_entry(by, "audience.created", audience.name, id=audience.id)
    db.session.commit()
    return audience


def get_or_create_audience(name: str) -> int:
    """Return the id of an audience, created when missing. The caller commits.

    :param name: as returned by `clean_audience_name`.
    """
    db.session.execute(upsert(Audience).values(name=name).on_conflict_do_nothing())
    return db.session.execute(select(Audience.id).where(Audience.name == name)).scalar_one()


def rename_audience(audience_id: int, name: str, by: str) -> Audience:
    """Rename an audience; its offers keep it. Commits.

    :raises NotFound: when there is no such audience.
    :raises InvalidInput: as `create_audience`.
    """
    audience = customer_queries.find_audience(audience_id)
    if audience is None:
        raise NotFound(_("This audience does not exist."))
    previous_name = audience.name
    audience.name = _require_free_audience_name(name, audience_id)
    _flush_audience()
    record_audit_entry(by, "audience.renamed", audience.name, id=audience.id, was=previous_name)
    db.session.commit()
    return audience


def _require_free_audience_name(raw_name: str, own_id: int | None) -> str:
    name = require_audience_name(raw_name)
    other = customer_queries.find_audience_by_name(name)
    if other is not None and other.id != own_id:
        raise _audience_name_conflict()
    return name


def require_audience_name(raw_name: str, field: str = "name") -> str:
    """Return the cleaned name of an audience.

    :param field: the field of the error.
    :raises InvalidInput: when the name is empty or too long.
    """
    try:
        name = clean_audience_name(raw_name)
    except InvalidInput as error:
        raise InvalidInput(*(FieldError(field, item.key, item.message) for item in error.errors)) from error
    if not name:
        raise InvalidInput(FieldError(field, "name_missing", _("Enter a name for the audience.")))
    return name


def _flush_audience() -> None:
    try:
        db.session.flush()
    except IntegrityError as error:
        db.session.rollback()
        raise _audience_name_conflict() from error


def _audience_name_conflict() -> InvalidInput:
    return InvalidInput(
        FieldError("name", "name_taken", _("An audience with this name already exists. Enter another name."))
    )
