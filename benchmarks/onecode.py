"""Onecode by its own actions and tasks, but without emails and a relay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from unittest.mock import patch

import flask_migrate
from flask import Flask
from sqlalchemy import text

from benchmarks import jobs
from webapp import create_app
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.content import placeholders
from webapp.campaigns.content.mail_merge import MailMerge
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.core import migrations, signing_keys
from webapp.core import settings as app_settings
from webapp.core.errors import DomainError
from webapp.core.extensions import db, huey
from webapp.core.money import Discount
from webapp.mail import smtp
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.smtp import SmtpOutcome
from webapp.offers.models import OfferValues
from webapp.redemptions import group_commit
from webapp.redemptions.group_commit import redeem
from webapp.redemptions.rules import RedemptionRequest


def build(url: str, folder: str, connections: int = 4) -> Flask:
    """Create the application for a database."""
    app = create_app(
        app_settings.load_settings(
            {
                "DATABASE_URL": url,
                "SECRET_KEY": "only-for-measuring",
                "INSTANCE_PATH": folder,
                "PUBLIC_URL": "https://offers.example.com",
                "MAIL_SERVER": "127.0.0.1",
                "MAIL_CONNECTIONS": str(connections),
            }
        )
    )
    # A worker that finds the queue empty is done here, instead of waiting.
    huey.storage.blocking = False
    return app


class DiscardingConnection(smtp.RelayConnection):
    """A relay connection that accepts every email at once, without a server."""

    def __init__(self) -> None:
        self.host = None

    def open(self) -> None:
        """Do nothing, since there is no server."""

    def deliver(
        self,
        message: OutgoingMessage,
        may_send: Callable[[], bool] = lambda: True,
        on_envelope_sent: Callable[[], object] = lambda: None,
    ) -> SmtpOutcome:
        on_envelope_sent()
        return SmtpOutcome("accepted", 250) if may_send() else SmtpOutcome("aborted")


@contextmanager
def sink() -> Iterator[None]:
    """Build empty messages and discard them, to measure only the database work."""
    blank = OutgoingMessage("offers@example.com", "ada@example.com", b"\r\n\r\n")
    with (
        patch.object(smtp, "create_relay_connection", DiscardingConnection),
        patch.object(MailMerge, "build_message", lambda *_: blank),
    ):
        yield


class Onecode:
    name = "Onecode"

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.workers = app.config["SETTINGS"].mail_connections
        self.codes: dict[int, str] = {}

    def set_up(self) -> None:
        """Create the signing keys, which an installation in use has already."""
        signing_keys.clear_key_cache()
        with self.app.app_context():
            for purpose in ("personal_link", "unsubscribe", "message_id", "personal_code"):
                signing_keys.list_accepted_keys(purpose)

    def new_offer(self, cap: int | None = None) -> int:
        """Create an offer with a draft campaign; return its id. `codes` has its code."""
        now = datetime.now(UTC)
        values = OfferValues(
            name="Summer",
            discount=Discount("percent", percent=Decimal(25)),
            starts_at=now - timedelta(hours=1),
            ends_at=now + timedelta(days=30),
            max_redemptions=cap,
        )
        with self.app.app_context():
            offer = draft_actions.create_offer_with_announcement(values, placeholders.EmailContent(), by="benchmark")
            self.codes[offer.id] = offer.code
            return offer.id

    def launch(self, offer_id: int) -> bool:
        with self.app.app_context():
            return launch_actions.launch_announcement(offer_id, by="benchmark").changed

    def run_jobs(self, at_most: int) -> int:
        """Run at most `at_most` tasks; return their number.

        One sending task sends for up to a minute.
        """
        with sink():
            return jobs.run([huey] * min(self.workers, at_most), at_most)

    def count_mailed(self, offer_id: int) -> int:
        with self.app.app_context():
            (campaign,) = campaign_queries.list_offer_campaigns(offer_id)
            return stats_queries.get_campaign_stats(campaign.id).sent

    def redeem(self, code: str, email: str) -> Decimal | None:
        try:
            return redeem(RedemptionRequest(channel="form", code=code, email=email)).discount.percent
        except DomainError:
            return None

    def redeem_each(self, requests: Sequence[tuple[str, str]]) -> int:
        with self.app.app_context():
            return sum(self.redeem(code, email) is not None for code, email in requests)

    def redeem_requests(self, offer_id: int, customers: Sequence[int]) -> list[tuple[str, str]]:
        with self.app.app_context():
            emails = db.session.scalars(
                text(
                    "select c.email from unnest(:ids) with ordinality as t(id, n) join customer c using (id) order by n"
                ),
                {"ids": list(customers)},
            )
            return [(self.codes[offer_id], email) for email in emails]

    def connect(self) -> None:
        with self.app.app_context():
            db.session.execute(text("select 1"))
        huey.storage.sql("select 1")

    def disconnect(self) -> None:
        with self.app.app_context():
            group_commit.get_group_committer().close()
            db.engine.dispose()
        huey.storage.close()


def migrate(app: Flask) -> None:
    migrations.init_app(app)
    with app.app_context():
        flask_migrate.upgrade()
