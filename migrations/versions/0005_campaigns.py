"""Write less per campaign: batches store gaps instead of ids, and a change of status updates no index."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# A temporary function for the statement that rewrites the table. Unlike an UPDATE, this keeps the order of the columns
# and leaves no dead rows with the old ids.
GAPS = """
    create function pg_temp.converted(bigint[]) returns bigint[] language sql as $$
      select array_agg(id - before order by place)
      from (select id, place, lag(id, 1, 0::bigint) over (order by place) as before
            from unnest($1) with ordinality as u(id, place)) x
    $$
"""
IDS = """
    create function pg_temp.converted(bigint[]) returns bigint[] language sql as $$
      select array_agg(id order by place)
      from (select place, (sum(gap) over (order by place))::bigint as id
            from unnest($1) with ordinality as u(gap, place)) x
    $$
"""


def upgrade() -> None:
    # Gaps compress well and then stay in the row; they are stored out of line only if they don't.
    op.execute("alter table batch alter column customer_ids set storage extended")
    op.execute("alter table batch rename column customer_ids to gaps")
    _convert(GAPS)
    op.add_column("campaign", sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("update campaign set cancelled_at = coalesce(finished_at, now()) where status = 'cancelled'")
    op.create_check_constraint(
        op.f("ck_campaign_cancelled"), "campaign", "(status = 'cancelled') = (cancelled_at is not null)"
    )
    _announced_once("cancelled_at is null")
    op.execute("alter table campaign set (fillfactor = 50)")


def downgrade() -> None:
    op.execute("alter table campaign reset (fillfactor)")
    _announced_once("status <> 'cancelled'")
    op.drop_constraint(op.f("ck_campaign_cancelled"), "campaign")
    op.drop_column("campaign", "cancelled_at")
    op.execute("alter table batch alter column gaps set storage external")
    _convert(IDS)
    op.execute("alter table batch rename column gaps to customer_ids")


def _convert(function: str) -> None:
    op.execute(function)
    op.execute("alter table batch alter column gaps type bigint[] using pg_temp.converted(gaps)")
    op.execute("drop function pg_temp.converted(bigint[])")


def _announced_once(unless: str) -> None:
    op.drop_index("uq_campaign_announcement", "campaign")
    op.execute(
        f"create unique index uq_campaign_announcement on campaign (offer_id) where kind = 'announcement' and {unless}"
    )
