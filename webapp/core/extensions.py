"""The Flask extensions, created once and bound to an app in `create_app`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from flask_babel import Babel
from flask_login import LoginManager
from flask_mail import Mail
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from huey import Huey
from sqlalchemy import BigInteger, DateTime, Identity, MetaData, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column, registry

from webapp.core.queue_storage import QueueStorage


class Base(DeclarativeBase):
    """Base of all models.

    Every constraint gets a name, so that a migration can drop it.
    """

    registry = registry(
        metadata=MetaData(
            naming_convention={
                "ix": "ix_%(table_name)s_%(column_0_N_name)s",
                "uq": "uq_%(table_name)s_%(column_0_N_name)s",
                "ck": "ck_%(table_name)s_%(constraint_name)s",
                "fk": "fk_%(table_name)s_%(column_0_N_name)s",
                "pk": "pk_%(table_name)s",
            }
        ),
        type_annotation_map={datetime: DateTime(timezone=True), dict[str, Any]: JSONB, str: Text()},
    )


Id = Annotated[int, mapped_column(BigInteger, Identity(), primary_key=True)]

db = SQLAlchemy(model_class=Base)
if TYPE_CHECKING:
    Model = Base
else:
    Model = db.Model

mail = Mail()
csrf = CSRFProtect()
babel = Babel()
login = LoginManager()
# The rows of the sessions protect them, not the address and the user agent of the client.
login.session_protection = None

# Task results are never read: the database rows are authoritative, and the queue only wakes the workers.
huey = Huey("onecode", storage_class=QueueStorage, dsn="", create_tables=False, results=False, read_timeout=5)
