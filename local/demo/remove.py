"""Taking the demonstration out again, with what hangs on it, and nothing else.

What others made beside it stays, also what they made while signed in as one of its people: their customers, imports
and offers, what those customers redeemed, whom not to mail, their settings, their lines of the trail. What they did to
the demonstration's customers and offers goes with these, and so do the accounts of its people.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import text

from local.demo import fill, ledger, people
from local.demo import offers as demo_offers
from webapp.campaigns.launch import cancellation, transitions
from webapp.campaigns.sending import completion
from webapp.campaigns.timing import LEASE_DURATION
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.redemptions import hourly_counts

# How long a worker may be at a mail of ours: its lease, and the sweep that finds that it ended.
PATIENCE = LEASE_DURATION + 60
BUSY = "a worker is still at something of the demonstration's; try again in a minute"

# The demonstration's rows by their ids. Views and no tables: an import wants connections without temporary tables.
_OURS = """
    create temporary view our_customer as select row_id as id from demo_row where part = 'customer';
    create temporary view our_offer as select row_id as id from demo_row where part = 'offer';
    create temporary view our_campaign as select id from campaign where offer_id in (select id from our_offer);
    create temporary view our_batch as select id from batch where campaign_id in (select id from our_campaign);
    create temporary view our_import as select row_id as id from demo_row where part = 'import';
    create temporary view our_staff as
      select id, email from staff_user where id in (select row_id from demo_row where part = 'staff_user');
    create temporary view our_subject as
      select kind, 'customer ' || id as subject from our_customer, unnest(array['customer.', 'suppression.']) kind
      union all
      select kind, code_as_written from offer_code, unnest(array['offer.', 'redemption.']) kind
      where offer_id in (select id from our_offer)
      union all select 'customers.refused_rows_exported', 'import ' || id from our_import
      union all select kind, cast(id as text) from our_campaign, unnest(array['campaign.', 'mail.']) kind
      union all select kind, email from our_staff, unnest(array['staff.', 'password.']) kind;
"""
_NO_MORE = "drop view our_subject, our_staff, our_import, our_batch, our_campaign, our_offer, our_customer"
# What is gone is counted under this name, where there is one; in this order nothing is left that points at what goes.
_STATEMENTS: tuple[tuple[str, str], ...] = (
    ("", "delete from code_miss where offer_id in (select id from our_offer)"),
    (
        "redemptions",
        "delete from redemption where offer_id in (select id from our_offer)"
        " or customer_id in (select id from our_customer)",
    ),
    (
        "",
        "delete from rollback where offer_id in (select id from our_offer)"
        " or customer_id in (select id from our_customer)",
    ),
    ("", "delete from audit_entry where id in (select row_id from demo_row where part = 'audit')"),
    (
        "",
        """
        delete from audit_entry a using our_subject s where a.subject = s.subject and starts_with(a.action, s.kind)
          and a.action not in ('campaign.launched', 'campaign.scheduled')
        """,
    ),
    # These two are about a code, which may look like the number of another campaign.
    (
        "",
        """
        delete from audit_entry where action in ('campaign.launched', 'campaign.scheduled')
          and detail->>'campaign' in (select cast(id as text) from our_campaign)
        """,
    ),
    ("", f"delete from suppression s where {ledger.UNMAILABLE}"),  # noqa: S608
    ("", "delete from mail_issue where campaign_id in (select id from our_campaign)"),
    ("", "delete from batch_cursor where batch_id in (select id from our_batch)"),
    ("", "delete from batch where id in (select id from our_batch)"),
    ("campaigns", "delete from campaign where id in (select id from our_campaign)"),
    ("", "delete from offer_code where offer_id in (select id from our_offer)"),
    ("offers", "delete from offer where id in (select id from our_offer)"),
    ("", "delete from audience_member where customer_id in (select id from our_customer)"),
    ("customers", "delete from customer where id in (select id from our_customer)"),
    ("", "delete from import_chunk where import_id in (select id from our_import)"),
    ("", "delete from import_rejection where import_id in (select id from our_import)"),
    ("imports", "delete from customer_import where id in (select id from our_import)"),
    (
        "audiences",
        """
        delete from audience a where id in (select row_id from demo_row where part = 'audience')
          and not exists (select from audience_member m where m.audience_id = a.id)
          and not exists (select from offer o where o.audience_id = a.id)
          and not exists (select from campaign c where c.audience_id = a.id)
          and not exists (select from customer_import i where i.audience_id = a.id)
        """,
    ),
    (
        "",
        """
        delete from api_key k where id in (select row_id from demo_row where part = 'api_key')
          and not exists (select from redemption r where r.api_key_id = k.id)
          and not exists (select from rollback r where r.api_key_id = k.id)
        """,
    ),
    ("", "delete from invitation where staff_user_id in (select id from our_staff)"),
    ("people who sign in", "delete from staff_user where id in (select id from our_staff)"),
)
# Of others' offers that the demonstration's customers have redeemed, the cap gets its units back.
_GIVE_BACK = """
    update offer o set redeemed = o.redeemed - x.n
    from (
      select offer_id, count(*) as n from redemption where customer_id in (select id from our_customer) group by 1
    ) x
    where o.id = x.offer_id and o.max_redemptions is not null
"""
_KEPT = "select name from audience where id in (select row_id from demo_row where part = 'audience') order by name"
# Customers whom somebody has given another e-mail are somebody's own by now.
_LEAVE = """
    delete from demo_row d using customer c
    where d.part = 'customer' and c.id = d.row_id and c.erased_at is null and not c.email = any(:addresses)
"""
# Of its people, whose names stand at something that stays.
_NAMED = """
    select e from unnest(cast(:people as text[])) e
    where exists (select from audit_entry where actor = e) or exists (select from customer_import where by = e)
"""
_CAMPAIGNS = """
    select c.id, c.status from campaign c join demo_row d on d.part = 'offer' and d.row_id = c.offer_id order by c.id
"""
_UNDER_WAY = ("scheduled", "preparing", "sending", "paused")
# A worker is at one of them, or may be until its lease ends.
_BUSY = """
    select exists (
      select from batch b join campaign c on c.id = b.campaign_id
      where b.status = 'sending' and c.offer_id in (select row_id from demo_row where part = 'offer')
    ) or exists (
      select from mail_issue i join campaign c on c.id = i.campaign_id
      where i.state = 'uncertain' and i.next_at > now()
        and c.offer_id in (select row_id from demo_row where part = 'offer')
    ) or exists (
      select from customer_import where status = 'running' and lease_until > now()
        and id in (select row_id from demo_row where part = 'import')
    )
"""


def remove(mails: Path | None) -> dict[str, Any]:
    """Stop what is being sent, then take everything out; what was removed, by its name. Empty when there was nothing;
    then nothing is changed. Can be interrupted and called again. `alone` is held by the caller.

    Beside that: the audiences that others use, as `kept`; how many of its customers stay because somebody has given
    them another e-mail, as `changed`; the e-mails of its people as whom something was done that stays, as `named`.

    :param mails: the folder of the mail sink, from which mails of the demonstration's mailings go as well.
    :raises DomainError: when a worker that had a mail in hand is not heard of; nothing is removed then.
    """
    if not fill.is_begun():
        return {}
    _stop()
    # While the campaigns are still known, in case this is interrupted.
    dropped = _drop_mails(mails) if mails is not None else 0
    found = _delete()
    found["kept"] = list(db.session.scalars(text(_KEPT)))
    found["named"] = list(db.session.scalars(text(_NAMED), {"people": [demo_offers.MANAGER[0], demo_offers.VIEWER[0]]}))
    _forget_latecomers()
    hourly_counts.update_hourly_counts()
    found["mails in the sink"] = dropped
    return found


def _stop() -> None:
    """Cancel what is under way and wait until no worker has any of it, nor an import, in hand."""
    deadline = time.monotonic() + PATIENCE
    while True:
        for row in db.session.execute(text(_CAMPAIGNS)).all():
            if row.status in _UNDER_WAY:
                transitions.cancel_campaign(row.id, by="make demo-remove")
        completion.finalize_cancelled_batches("demo-remove")
        cancellation.clean_up_cancelled_campaigns()
        if not db.session.scalar(text(_BUSY)):
            db.session.rollback()
            return
        db.session.rollback()
        if time.monotonic() > deadline:
            raise DomainError("conflict", BUSY)
        time.sleep(0.2)


def _delete() -> dict[str, Any]:
    """Everything in one transaction, while nobody redeems and nobody counts."""
    values = {"addresses": people.addresses()}
    # First of all, as those who redeem and undo take them.
    ledger.count_anew()
    db.session.execute(text("lock table redemption in share row exclusive mode"))
    ledger.adopt()
    found: dict[str, Any] = {"changed": db.session.execute(text(_LEAVE), values).rowcount}  # type: ignore[attr-defined]
    db.session.execute(text(_OURS))
    db.session.execute(text(_GIVE_BACK))
    for name, statement in _STATEMENTS:
        n = db.session.execute(text(statement), values).rowcount  # type: ignore[attr-defined]
        if name:
            found[name] = n
    _unname_shop()
    db.session.execute(text(_NO_MORE))
    db.session.commit()
    return found


def _unname_shop() -> None:
    """What the shop is called goes only if nobody has said otherwise since."""
    said = asdict(demo_offers.SHOP)
    same = " and ".join(f"{name} = :{name}" for name in said)
    ours = "exists (select from demo_row where part = 'shop')"
    db.session.execute(text(f"delete from shop where id = 1 and {ours} and {same}"), said)  # noqa: S608


def _forget_latecomers() -> None:
    """Whoever was redeeming at that very moment had read that the offer is there. When the table is ours alone they are
    through; then nothing is the demonstration's any more."""
    db.session.execute(text("lock table redemption in access exclusive mode"))
    db.session.execute(text(_OURS))
    db.session.execute(text(_GIVE_BACK))
    for _, statement in _STATEMENTS[1:3]:
        db.session.execute(text(statement))
    db.session.execute(text(_NO_MORE))
    db.session.execute(text("delete from demo_row"))
    db.session.commit()


def _drop_mails(folder: Path) -> int:
    """The kept mails of our mailings, of which nothing is sent any more."""
    marks = {f"x-campaign-id: {row.id}".encode() for row in db.session.execute(text(_CAMPAIGNS))}
    db.session.rollback()
    n = 0
    for path in folder.glob("*.eml"):
        with path.open("rb") as file:
            head = file.read(8192).lower().partition(b"\r\n\r\n")[0]
        if marks & set(head.split(b"\r\n")):
            path.unlink(missing_ok=True)
            n += 1
    return n
