"""The limit of customers per client address on the public form, and the emails that replace redeeming at once."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support import live_server
from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.redemptions import count_redemptions, run_concurrently
from tests.support.smtp_relay import Relay
from tests.support.sql_statements import recorded_statements
from webapp.core import task_queue
from webapp.core.extensions import db, huey
from webapp.core.settings import Settings
from webapp.customers.models import Audience, AudienceMember
from webapp.offers.models import Offer, OfferCode
from webapp.redemptions import address_limit, group_commit, personal_codes, personal_links
from webapp.redemptions.address_limit import AddressLimitReached
from webapp.redemptions.customer_emails import MAX_EMAILS_PER_DAY, RETRY_DELAYS
from webapp.redemptions.rules import RedemptionRequest

SHOP_WIFI = "192.0.2.1"
PAST = datetime(2020, 5, 1, tzinfo=UTC)
LIMIT = 2


@pytest.fixture(autouse=True)
def settings(with_settings: Callable[..., Settings]) -> Settings:
    """A limit of two customers per address."""
    return with_settings(public_customers_per_address=LIMIT)


@pytest.fixture
def offer(make_offer: MakeOffer, make_customer: MakeCustomer) -> Offer:
    """An offer for all customers, of whom ada has done nothing yet."""
    make_customer()
    return make_offer()


def post(client: FlaskClient, email: str = "ada@example.com", code: str = "SUMMER25", host: str = SHOP_WIFI) -> Any:
    return client.post("/redeem", data={"code": code, "email": email}, environ_base={"REMOTE_ADDR": host})


def use_up_limit(
    client: FlaskClient, make_customer: MakeCustomer, host: str = SHOP_WIFI, code: str = "SUMMER25"
) -> None:
    """Redeem for as many customers as an address may."""
    for n in range(LIMIT):
        make_customer(f"first{n}@example.com")
        assert post(client, f"first{n}@example.com", code, host).status_code == 200


def reset_rate_limits() -> None:
    db.session.execute(text("truncate rate_hit"))
    db.session.commit()


def run_queued_tasks() -> int:
    """Run every queued task; return their number."""
    n = 0
    while huey.storage.queue_size():
        huey.execute(huey.dequeue())
        n += 1
    return n


def end_windows() -> None:
    db.session.execute(text("update address_customers set expires_at = now()"))
    db.session.execute(text("update address_excess set last_at = now() - interval '1 hour'"))
    db.session.commit()


def counted_customers(address: str = SHOP_WIFI) -> int:
    """Return how many customers count towards the limit of an address."""
    statement = text(
        "select count(*) from address_customers, jsonb_object_keys(customers) where address = :address"
        " and expires_at > now()"
    )
    return int(db.session.execute(statement, {"address": address}).scalar_one())


def count(email: str, address: str = SHOP_WIFI) -> address_limit.CountedCustomer | None:
    return address_limit.count_customer(address, "SUMMER25", email)


class TestLimit:
    def test_customers_beyond_the_limit_redeem_with_the_link_in_an_email(
        self, client: FlaskClient, relay: Relay, offer: Offer, make_customer: MakeCustomer
    ) -> None:
        use_up_limit(client, make_customer)

        response = post(client)
        run_queued_tasks()

        assert response.status_code == 202
        assert "If this address can use the offer, we have emailed a personal link to it." in response.text
        assert "/r/" not in response.text
        assert (count_redemptions(), relay.recipients) == (LIMIT, {"ada@example.com": 1})
        (link,) = [line for line in relay.message_to("ada@example.com").text.splitlines() if "/r/" in line]
        assert client.post(link.removeprefix("http://localhost")).status_code == 200
        assert count_redemptions() == LIMIT + 1

    def test_another_address_is_not_affected(
        self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer
    ) -> None:
        use_up_limit(client, make_customer)

        assert post(client, host="192.0.2.2").status_code == 200

    @pytest.mark.parametrize(
        ("host", "status"),
        [("2001:db8:1:2:ffff::9", 202), ("2001:db8:1:3::1", 200), ("192.0.2.1", 200)],
        ids=["same /64", "other /64", "IPv4"],
    )
    def test_an_ipv6_network_of_64_bits_is_one_address(
        self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer, host: str, status: int
    ) -> None:
        use_up_limit(client, make_customer, "2001:db8:1:2::1")

        assert post(client, host=host).status_code == status

    def test_customers_redeem_at_once_again_after_the_window(
        self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer
    ) -> None:
        use_up_limit(client, make_customer)
        assert post(client).status_code == 202
        end_windows()

        assert post(client).status_code == 200
        assert counted_customers() == 1

    def test_the_window_starts_with_the_first_customer(
        self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer
    ) -> None:
        post(client)
        select_end = text("select expires_at, expires_at - now() from address_customers")
        first_end, remaining = db.session.execute(select_end).one()
        use = make_customer("bob@example.com")
        post(client, use.email)

        assert timedelta(minutes=59) < remaining <= timedelta(hours=1)
        assert db.session.execute(select_end).one()[0] == first_end

    def test_a_customer_counts_once_whatever_they_redeem(
        self, client: FlaskClient, offer: Offer, make_offer: MakeOffer, make_customer: MakeCustomer
    ) -> None:
        make_offer("AUTUMN10"), make_customer("bob@example.com")

        statuses = [
            post(client, email, code).status_code
            for email, code in [
                ("ada@example.com", "SUMMER25"),
                (" ADA@example.com", "summer-25"),
                ("ada@example.com", "AUTUMN10"),
                ("bob@example.com", "SUMMER25"),
            ]
        ]

        assert statuses == [200, 409, 200, 200]
        assert counted_customers() == 2

    def test_customers_of_several_offers_count_together(
        self, client: FlaskClient, offer: Offer, make_offer: MakeOffer, make_customer: MakeCustomer
    ) -> None:
        make_offer("AUTUMN10")
        use_up_limit(client, make_customer, code="AUTUMN10")

        assert post(client).status_code == 202

    def test_a_customer_who_has_redeemed_counts_because_the_response_shows_it(
        self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer
    ) -> None:
        for n in range(LIMIT):
            make_customer(f"first{n}@example.com")
            group_commit.redeem(RedemptionRequest(channel="api", code="SUMMER25", email=f"first{n}@example.com"))

        statuses = [post(client, f"first{n}@example.com").status_code for n in range(LIMIT)]

        assert (*statuses, post(client).status_code) == (409, 409, 202)

    @pytest.mark.parametrize(
        ("values", "email"),
        [
            ({}, "unknown@example.com"),
            ({}, "ada@"),
            ({"paused_at": PAST}, "ada@example.com"),
            ({"max_redemptions": 1, "redeemed": 1}, "ada@example.com"),
            ({"starts_at": PAST, "ends_at": PAST + timedelta(1)}, "ada@example.com"),
            ({"personal_code_required": True}, "ada@example.com"),
        ],
        ids=["unknown", "invalid", "paused", "used up", "ended", "personal code required"],
    )
    def test_refusals_that_reveal_nothing_about_a_customer_do_not_count(
        self,
        client: FlaskClient,
        make_offer: MakeOffer,
        make_customer: MakeCustomer,
        values: dict[str, Any],
        email: str,
    ) -> None:
        make_offer(**values), make_customer()

        statuses = {post(client, email).status_code for _ in range(LIMIT + 1)}

        assert statuses <= {409, 422}
        assert counted_customers() == 0

    def test_a_customer_outside_the_audience_does_not_count(
        self, client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
    ) -> None:
        audience = Audience(name="VIPs")
        db.session.add(audience)
        db.session.flush()
        make_offer(audience_id=audience.id), make_customer()

        assert post(client).status_code == 409
        assert counted_customers() == 0

    def test_personal_codes_and_links_are_exempt(
        self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer
    ) -> None:
        bob = make_customer("bob@example.com")
        use_up_limit(client, make_customer)
        ada_id = db.session.execute(text("select id from customer where email = 'ada@example.com'")).scalar_one()
        code = personal_codes.derive_personal_code("SUMMER25", offer.id, ada_id)
        link = personal_links.build_personal_url(offer.id, bob.id).removeprefix("http://localhost")

        assert post(client, code=code).status_code == 200
        assert client.post(link, environ_base={"REMOTE_ADDR": SHOP_WIFI}).status_code == 200
        assert counted_customers() == LIMIT

    @pytest.mark.parametrize("typed", ["SUMMER25-7KQ4XM2T", "WINTER", "OLDER25"])
    def test_codes_that_are_not_an_open_shared_code_are_refused_as_before(
        self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer, typed: str
    ) -> None:
        db.session.add(
            OfferCode(code="OLDER25", offer_id=offer.id, code_as_written="OLDER25", closed_at=datetime.now(UTC))
        )
        db.session.commit()
        use_up_limit(client, make_customer)

        assert post(client, code=typed).status_code in (404, 409)
        assert address_limit.list_offers_over_address_limit(10) == {}

    def test_an_earlier_code_that_is_open_counts(
        self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer
    ) -> None:
        db.session.add(OfferCode(code="OLDER25", offer_id=offer.id, code_as_written="OLDER25"))
        db.session.commit()
        use_up_limit(client, make_customer)

        assert post(client, code="OLDER25").status_code == 202

    def test_there_is_no_limit_with_the_setting_0(
        self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer, with_settings: Callable[..., Settings]
    ) -> None:
        with_settings(public_customers_per_address=0)
        use_up_limit(client, make_customer)

        assert post(client).status_code == 200
        assert counted_customers() == 0

    def test_the_api_has_no_limit(
        self, api: FlaskClient, client: FlaskClient, offer: Offer, make_customer: MakeCustomer
    ) -> None:
        use_up_limit(client, make_customer, "127.0.0.1")

        response = api.post("/api/v1/redemptions", json={"code": "SUMMER25", "customer": {"email": "ada@example.com"}})

        assert response.status_code == 201

    def test_a_redemption_costs_one_more_statement(
        self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer, with_settings: Callable[..., Settings]
    ) -> None:
        make_customer("warm.up@example.com"), make_customer("bob@example.com")
        post(client, "warm.up@example.com", host="192.0.2.9")
        with recorded_statements() as with_limit:
            assert post(client).status_code == 200
        with_settings(public_customers_per_address=0)
        with recorded_statements() as without_limit:
            assert post(client, "bob@example.com", host="192.0.2.2").status_code == 200

        additional = Counter(statement for statement, _ in with_limit)
        additional.subtract(statement for statement, _ in without_limit)
        assert sum(additional.values()) == 1
        assert "address_customers" in max(additional, key=lambda statement: additional[statement])

    def test_no_email_address_is_stored(self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer) -> None:
        use_up_limit(client, make_customer)
        post(client)

        rows = str(db.session.execute(text("select a::text, x::text from address_customers a, address_excess x")).all())

        assert SHOP_WIFI in rows
        assert "@" not in rows
        assert "first0" not in rows

    def test_stored_customers_can_only_be_recognised_with_the_secret_key(
        self, offer: Offer, with_settings: Callable[..., Settings]
    ) -> None:
        first = count("ada@example.com")
        with_settings(secret_key="another key")
        second = count("ada@example.com")

        assert first is not None
        assert second is not None
        assert first.customer_hash != second.customer_hash

    def test_all_expired_rows_are_deleted_in_steps(self, offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(address_limit, "CLEANUP_CHUNK_SIZE", 2)
        for n in range(5):
            count("ada@example.com", f"192.0.2.{n}")
            db.session.execute(
                text("insert into address_excess values (:id, :address, now())"),
                {"id": offer.id, "address": f"192.0.2.{n}"},
            )
        end_windows()
        count("ada@example.com", "192.0.2.9")

        address_limit.delete_expired_addresses()

        assert db.session.scalars(text("select address from address_customers")).all() == ["192.0.2.9"]
        assert db.session.scalars(text("select address from address_excess")).all() == []

    def test_rows_are_deleted_after_their_window(
        self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer
    ) -> None:
        use_up_limit(client, make_customer)
        post(client)

        def count_rows() -> tuple[int, int]:
            task_queue.run("redemptions.delete_expired_addresses")
            db.session.rollback()
            statement = "select (select count(*) from address_customers), (select count(*) from address_excess)"
            customers, excess = db.session.execute(text(statement)).one()
            return customers, excess

        assert count_rows() == (1, 1)
        end_windows()
        assert count_rows() == (0, 0)


class TestConcurrency:
    def test_of_concurrent_attempts_at_the_limit_one_counts(self, app: Flask, offer: Offer) -> None:
        for n in range(LIMIT - 1):
            count(f"first{n}@example.com")

        def try_to_count(n: int) -> object:
            try:
                return count(f"c{n}@example.com")
            except AddressLimitReached as error:
                return error

        results = run_concurrently(app, *(lambda n=n: try_to_count(n) for n in range(8)))

        assert sorted(isinstance(result, AddressLimitReached) for result in results) == [False] + [True] * 7
        assert counted_customers() == LIMIT

    def test_a_customer_counts_while_one_of_several_attempts_does(self, offer: Offer) -> None:
        first, second = count("ada@example.com"), count("ada@example.com")

        address_limit.uncount_customer(first)
        after_first = counted_customers()
        address_limit.uncount_customer(second)

        assert (after_first, counted_customers()) == (1, 0)

    def test_an_attempt_of_an_earlier_window_is_not_uncounted_in_the_next(self, offer: Offer) -> None:
        earlier = count("ada@example.com")
        end_windows()
        count("ada@example.com")

        address_limit.uncount_customer(earlier)

        assert counted_customers() == 1

    @pytest.mark.slow
    def test_two_web_processes_redeem_up_to_the_limit_exactly(
        self, app: Flask, offer: Offer, make_customer: MakeCustomer
    ) -> None:
        """Clients of one address send each email address to one of two servers, all at the same time."""
        emails = [make_customer(f"c{n}@example.com").email for n in range(16)]
        ready = threading.Barrier(len(emails))
        with ExitStack() as stack:
            limit = {"PUBLIC_CUSTOMERS_PER_ADDRESS": "5"}
            servers = [
                stack.enter_context(live_server.web_server(app.config["SETTINGS"], 1, **limit)) for _ in range(2)
            ]

            def send(n: int) -> int:
                ready.wait()
                return _post_to(servers[n % 2].url, emails[n])

            with ThreadPoolExecutor(len(emails)) as pool:
                statuses = Counter(pool.map(send, range(len(emails))))

        assert statuses == {200: 5, 202: 11}
        assert count_redemptions() == 5


def _post_to(url: str, email: str) -> int:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        body = urlencode({"code": "SUMMER25", "email": email})
        connection.request("POST", "/redeem", body, {"Content-Type": "application/x-www-form-urlencoded"})
        return connection.getresponse().status
    finally:
        connection.close()


KINDS = (
    "unknown",
    "eligible",
    "redeemed",
    "redeemed here",
    "erased",
    "not in the audience",
    "unsubscribed",
    "bounced",
    "complained",
)


@pytest.fixture
def emails(make_offer: MakeOffer, make_customer: MakeCustomer, client: FlaskClient) -> dict[str, str]:
    """An email address of each kind, after the address has reached its limit with an offer for an audience."""
    audience = Audience(name="VIPs")
    db.session.add(audience)
    db.session.flush()
    make_offer(audience_id=audience.id)
    emails = {kind: f"{kind.replace(' ', '.')}@example.com" for kind in KINDS}
    for kind, email in emails.items():
        if kind == "unknown":
            continue
        suppressed = kind if kind in ("unsubscribed", "bounced", "complained") else ""
        customer = make_customer(email, suppressed=suppressed, erased_at=PAST if kind == "erased" else None)
        if kind not in ("erased", "not in the audience"):
            db.session.add(AudienceMember(audience_id=audience.id, customer_id=customer.id))
    other = make_customer("other@example.com")
    db.session.add(AudienceMember(audience_id=audience.id, customer_id=other.id))
    db.session.commit()
    group_commit.redeem(RedemptionRequest(channel="api", code="SUMMER25", email=emails["redeemed"]))
    for email in (emails["redeemed here"], other.email):
        assert post(client, email).status_code == 200
    reset_rate_limits()
    return emails


def observe(client: FlaskClient, email: str) -> dict[str, Any]:
    """Return everything that a visitor sees, and the work of the request."""
    reset_rate_limits()
    huey.flush()
    with recorded_statements() as recorded:
        response = post(client, email)
    headers = {name: value for name, value in response.headers if name not in ("X-Request-Id", "Content-Length")}
    return {
        "status": response.status_code,
        "headers": headers,
        "page": response.text.replace(email, "EMAIL"),
        "statements": [statement for statement, _ in recorded],
        "tasks": [(task.name, len(task.args)) for task in huey.pending()],
        "counters": db.session.execute(text("select count(*), sum(n) from rate_hit")).one(),
    }


class TestSameResponses:
    @pytest.mark.parametrize(
        ("change", "status"),
        [
            ("", 202),
            ("max_redemptions = 3; update offer_counter set max_redemptions = 3, redeemed = 3", 202),
            ("paused_at = now()", 409),
            ("starts_at = now() - interval '2 days', ends_at = now() - interval '1 day'", 409),
            ("personal_code_required = true", 409),
        ],
        ids=["live", "used up", "paused", "ended", "personal codes"],
    )
    def test_the_response_is_the_same_for_every_email(
        self, client: FlaskClient, emails: dict[str, str], change: str, status: int
    ) -> None:
        if change:
            db.session.execute(text(f"update offer set {change}"))
            db.session.commit()
        observe(client, emails["unknown"])
        unknown = observe(client, emails["unknown"])

        observed = {kind: observe(client, email) for kind, email in emails.items()}

        assert unknown["status"] == status
        assert any("address_customers" in statement for statement in unknown["statements"])
        assert observed == dict.fromkeys(KINDS, unknown)

    def test_an_attempt_above_the_limit_is_not_a_failed_attempt(
        self, client: FlaskClient, emails: dict[str, str]
    ) -> None:
        post(client, emails["unknown"])

        assert db.session.execute(text("select count(*) from code_miss")).scalar_one() == 0

    @pytest.mark.parametrize(
        ("kind", "subject"),
        [
            ("eligible", "Your personal link: Summer"),
            ("unsubscribed", "Your personal link: Summer"),
            ("redeemed", "Your receipt: Summer"),
            ("redeemed here", "Your receipt: Summer"),
            ("unknown", None),
            ("erased", None),
            ("not in the audience", None),
            ("bounced", None),
            ("complained", None),
        ],
    )
    def test_the_email_depends_on_the_customer(
        self, client: FlaskClient, relay: Relay, emails: dict[str, str], kind: str, subject: str | None
    ) -> None:
        post(client, emails[kind])
        run_queued_tasks()

        subjects = [(message.to, message.message["Subject"]) for message in relay.messages]
        assert subjects == ([(emails[kind], subject)] if subject else [])

    @pytest.mark.parametrize(
        "change",
        [
            "offer set paused_at = now()",
            "offer set max_redemptions = 3; update offer_counter set max_redemptions = 3, redeemed = 3",
            "customer set erased_at = now(), email = 'erased ' || id, email_as_given = 'erased customer', name = ''"
            " where erased_at is null",
        ],
        ids=["paused", "used up", "erased"],
    )
    def test_no_email_is_sent_if_the_customer_can_no_longer_redeem(
        self, client: FlaskClient, relay: Relay, emails: dict[str, str], change: str
    ) -> None:
        post(client, emails["eligible"])
        db.session.execute(text(f"update {change}"))
        db.session.commit()

        assert run_queued_tasks() == 1
        assert relay.messages == []


class TestLinkEmail:
    @pytest.fixture(autouse=True)
    def over_limit(self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer) -> None:
        use_up_limit(client, make_customer)

    def test_the_email_has_the_link_the_discount_and_the_last_day(
        self, client: FlaskClient, relay: Relay, offer: Offer
    ) -> None:
        db.session.execute(text("update customer set locale = 'de' where email = 'ada@example.com'"))
        db.session.execute(text("update offer set ends_at = '2098-06-01T00:00:00Z'"))
        db.session.commit()
        post(client)
        run_queued_tasks()

        received = relay.message_to("ada@example.com")
        assert received.text.splitlines()[:4] == [
            "Hello Ada Lovelace,",
            "",
            'The code of "Summer" was entered with this email address.',
            "To redeem the offer, open your personal link:",
        ]
        assert received.text.splitlines()[4].startswith("http://localhost/r/")
        assert received.text.splitlines()[5:] == [
            "",
            "Discount:  25\xa0%",
            "Code:      SUMMER25",
            "Last day:  31. Mai 2098",
            "",
            "If you did not enter the code, you can ignore this email: nothing was redeemed or changed.",
            "",
            "Test shop",
        ]
        assert received.message["Auto-Submitted"] == "auto-generated"

    def test_an_offer_without_an_end_has_no_last_day(self, client: FlaskClient, relay: Relay) -> None:
        db.session.execute(text("update offer set ends_at = null"))
        db.session.commit()
        post(client)
        run_queued_tasks()

        assert "Code:      SUMMER25\n\nIf you" in relay.message_to("ada@example.com").text.replace("\r\n", "\n")

    def test_a_customer_gets_one_link_an_hour_for_an_offer(
        self, client: FlaskClient, relay: Relay, make_offer: MakeOffer
    ) -> None:
        make_offer("AUTUMN10", name="Autumn")
        for code in ("SUMMER25", "SUMMER25", "AUTUMN10"):
            assert post(client, code=code).status_code == 202
        run_queued_tasks()
        before = [message.message["Subject"] for message in relay.messages]
        db.session.execute(text("update rate_hit set expires_at = now() where key like 'personal_link:%'"))
        db.session.commit()
        post(client)
        run_queued_tasks()

        assert before == ["Your personal link: Summer", "Your personal link: Autumn"]
        assert len(relay.messages) == 3

    def test_a_customer_gets_at_most_five_links_a_day(
        self, client: FlaskClient, relay: Relay, make_offer: MakeOffer
    ) -> None:
        for n in range(MAX_EMAILS_PER_DAY + 1):
            make_offer(f"CODE{n}")
            post(client, code=f"CODE{n}")
        run_queued_tasks()

        assert relay.recipients == {"ada@example.com": MAX_EMAILS_PER_DAY}

    def test_the_link_is_sent_when_the_relay_has_recovered(
        self, client: FlaskClient, relay: Relay, with_settings: Callable[..., Settings]
    ) -> None:
        with_settings(mail_port=1)
        post(client)
        run_queued_tasks()
        with_settings(mail_port=relay.port)
        (retry,) = huey.scheduled()
        delay = retry.eta.replace(tzinfo=UTC) - datetime.now(UTC)

        task_queue.run("redemptions.send_personal_link", *retry.args)

        assert 50 < delay.total_seconds() <= RETRY_DELAYS[0]
        assert relay.recipients == {"ada@example.com": 1}

    def test_after_the_last_retry_the_customer_can_request_the_link_again(
        self, client: FlaskClient, relay: Relay, offer: Offer, with_settings: Callable[..., Settings]
    ) -> None:
        with_settings(mail_port=1)
        post(client)
        run_queued_tasks()
        (retry,) = huey.scheduled()
        huey.flush()
        task_queue.run("redemptions.send_personal_link", *retry.args[:2], len(RETRY_DELAYS))
        with_settings(mail_port=relay.port)
        assert (huey.pending(), huey.scheduled()) == ([], [])

        post(client)
        run_queued_tasks()

        assert relay.recipients == {"ada@example.com": 1}

    @pytest.mark.parametrize("email", ["ada@example.com", "unknown@example.com"])
    def test_without_the_queue_nothing_is_promised(
        self, client: FlaskClient, relay: Relay, monkeypatch: pytest.MonkeyPatch, email: str
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(task_queue, "enqueue", lambda *_, **__: False)
            response = post(client, email)
        assert response.status_code == 503
        assert "This attempt redeemed nothing. Please try again in a moment." in response.text

        assert post(client, email).status_code == 202
        run_queued_tasks()
        assert relay.recipients == ({"ada@example.com": 1} if email == "ada@example.com" else {})


class TestAlarm:
    @pytest.fixture
    def busy_offer(self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer) -> Offer:
        """An offer whose code exceeded the limit from two addresses."""
        for host in ("192.0.2.1", "192.0.2.2"):
            for n in range(LIMIT):
                make_customer(f"c{n}@{host}.example")
                post(client, f"c{n}@{host}.example", host=host)
            for _ in range(2):
                assert post(client, host=host).status_code == 202
        return offer

    def test_addresses_that_reach_the_limit_without_exceeding_it_raise_no_alarm(
        self, client: FlaskClient, offer: Offer, make_customer: MakeCustomer
    ) -> None:
        use_up_limit(client, make_customer)

        assert address_limit.list_offers_over_address_limit(10) == {}

    def test_staff_see_the_number_of_addresses_and_what_to_do(
        self, busy_offer: Offer, make_offer: MakeOffer, staff: FlaskClient
    ) -> None:
        quiet = make_offer("QUIET")

        page = staff.get(f"/offers/{busy_offer.id}").text

        assert "2 internet addresses exceeded the limit of customers in the last hour" in page
        assert "redeems at once for at most 2 customers an hour" in page
        assert "require personal codes, or pause the offer" in page
        assert "exceeded the limit" not in staff.get(f"/offers/{quiet.id}").text
        home = staff.get("/").text
        assert home.count("exceeded the limit of customers per internet address at 2 addresses in the last hour") == 1
        assert "require personal codes, or pause the offer" in home

    def test_the_advice_differs_where_personal_codes_are_required(self, busy_offer: Offer, staff: FlaskClient) -> None:
        db.session.execute(text("update offer set personal_code_required = true"))
        db.session.commit()

        page = staff.get(f"/offers/{busy_offer.id}").text

        assert "The shared code alone is not accepted" in page
        assert "require personal codes, or pause" not in page
        assert "require personal codes, or pause" not in staff.get("/").text

    def test_the_alarm_ends_an_hour_after_the_last_attempt(self, busy_offer: Offer, staff: FlaskClient) -> None:
        end_windows()

        assert "exceeded the limit" not in staff.get(f"/offers/{busy_offer.id}").text
        assert "internet address" not in staff.get("/").text

    def test_a_repeated_attempt_prolongs_the_alarm(self, client: FlaskClient, busy_offer: Offer) -> None:
        db.session.execute(text("update address_excess set last_at = now() - interval '59 minutes'"))
        db.session.commit()

        assert post(client, host="192.0.2.1").status_code == 202

        db.session.execute(text("update address_excess set last_at = last_at - interval '2 minutes'"))
        db.session.commit()
        assert address_limit.count_addresses_over_limit([busy_offer.id]) == {busy_offer.id: 1}

    def test_offers_are_sorted_by_addresses(self, make_offer: MakeOffer) -> None:
        offers = [make_offer(f"CODE{n}") for n in range(3)]
        for offer, number in zip(offers, (1, 3, 2), strict=True):
            db.session.execute(
                text("insert into address_excess select :id, n, now() from generate_series(1, :number) n"),
                {"id": offer.id, "number": number},
            )
        db.session.commit()

        found = address_limit.list_offers_over_address_limit(2)

        assert list(found.items()) == [(offers[1].id, 3), (offers[2].id, 2)]
