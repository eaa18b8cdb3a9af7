"""A second baseline over HTTP: a view as in a Flask-SQLAlchemy tutorial.

It returns the response of a successful `POST /api/v1/redemptions` and checks only what that needs.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Any

from flask import Flask, Response, abort, jsonify, request
from sqlalchemy import make_url, select

from benchmarks.textbook import orm_habit
from webapp.accounts.models import ApiKey
from webapp.core.extensions import db
from webapp.offers.models import Offer

app = Flask(__name__)


def hash_secret(secret: str) -> bytes:
    """The stored hash of a key's secret."""
    return hashlib.sha256(secret.encode()).digest()


def configure(url: str) -> None:
    app.config["SQLALCHEMY_DATABASE_URI"] = make_url(url).set(drivername="postgresql+psycopg")
    # As many connections as the server may have threads, so that no thread waits for one.
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 10, "max_overflow": 20}
    db.init_app(app)


@app.post("/api/v1/redemptions")
def redeem() -> tuple[Response, int]:
    _authenticate(request.headers.get("Authorization", ""))
    body: Any = request.get_json()
    if not isinstance(body, dict) or not isinstance(body.get("customer"), dict):
        abort(422)
    code, email = body.get("code"), body["customer"].get("email")
    if not isinstance(code, str) or not isinstance(email, str):
        abort(422)
    code, email = code.strip().upper(), email.strip().lower()
    if not orm_habit(db.session(), code, email):
        abort(409)
    offer = db.session.scalars(select(Offer).where(Offer.code == code)).one()
    response = {
        "code": offer.code_as_written,
        "offer": offer.name,
        "customer": {"email": email},
        "discount": {"type": "percent", "percent": str(offer.percent)},
    }
    return jsonify(response), 201


def _authenticate(authorization: str) -> None:
    public_id, _, secret = authorization.removeprefix("Bearer ").partition("_")
    key = db.session.scalar(select(ApiKey).where(ApiKey.public_id == public_id, ApiKey.revoked_at.is_(None)))
    if key is None or not hmac.compare_digest(key.secret_hash, hash_secret(secret)):
        abort(401)
    if "redeem" not in key.scopes:
        abort(403)


if "DATABASE_URL" in os.environ:
    configure(os.environ["DATABASE_URL"])
