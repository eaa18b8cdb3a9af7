"""Add what retention periods and the erasure of staff accounts need.

Existing customers count as active at the time of the upgrade. Creating the index locks the table of customers for
writing, about a second per million.
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

HAS_FREE_TEXT = (
    "num_nonnulls(order_metadata, idempotency_key, body_hash) > 0 or reason not in "
    "('The reason was erased with the customer.', 'The reason was deleted after the retention period.')"
)
ERASED_STAFF_USER = (
    "erased_at is null or (email = 'erased user ' || id and name = 'Erased user ' || id and password_hash = ''"
    " and time_zone = 'UTC' and last_sign_in_at is null and disabled_at is not null)"
)
# The label of an erased account may replace its email address, and the network addresses of its entries may be removed.
# Nothing else of an entry may change.
REJECT_CHANGE = """
create or replace function reject_audit_entry_change() returns trigger language plpgsql as $$
declare
  changeable constant text[] := array['actor', 'subject', 'address'];
  is_by_erased_user boolean;
begin
  if tg_op = 'DELETE' and old.at < now() - interval '30 days' then
    return old;
  end if;
  if tg_op = 'UPDATE' then
    is_by_erased_user := exists (select from staff_user where email = new.actor and erased_at is not null);
    if to_jsonb(new) - changeable = to_jsonb(old) - changeable
      and (new.actor = old.actor or is_by_erased_user)
      and (
        new.subject = old.subject
        or exists (select from staff_user where email = new.subject and erased_at is not null)
      )
      and (
        to_jsonb(new) -> 'address' is not distinct from to_jsonb(old) -> 'address'
        or is_by_erased_user and to_jsonb(new) ->> 'address' is null
      )
    then
      return new;
    end if;
  end if;
  raise exception 'audit_entry is append-only: % is not allowed', tg_op
    using errcode = 'insufficient_privilege', hint = 'Only entries older than 30 days may be deleted.';
end
$$
"""
REJECT_CHANGE_BEFORE = """
create or replace function reject_audit_entry_change() returns trigger language plpgsql as $$
begin
  if tg_op = 'DELETE' and old.at < now() - interval '30 days' then
    return old;
  end if;
  raise exception 'audit_entry is append-only: % is not allowed', tg_op
    using errcode = 'insufficient_privilege', hint = 'Only entries older than 30 days may be deleted.';
end
$$
"""


def upgrade() -> None:
    op.add_column(
        "customer",
        sa.Column("active_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
    )
    op.create_index(
        "ix_customer_active_at", "customer", ["active_at"], postgresql_where=sa.text("erased_at is null")
    )
    op.create_index(
        "ix_rollback_free_text", "rollback", ["rolled_back_at"], postgresql_where=sa.text(HAS_FREE_TEXT)
    )
    op.add_column("campaign", sa.Column("replies_cleared_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "retention_run",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("is_complete", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("removed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("removed_in_total", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "kind in ('customers', 'redemptions', 'deliveries', 'audit')", name=op.f("ck_retention_run_kind")
        ),
        sa.PrimaryKeyConstraint("kind", name=op.f("pk_retention_run")),
    )
    op.create_table(
        "redemption_retention",
        sa.Column("offer_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("cleared_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("offer_id", name=op.f("pk_redemption_retention")),
    )
    op.add_column("staff_user", sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True))
    # Accounts that were erased before a downgrade.
    op.execute("update staff_user set erased_at = disabled_at where email = 'erased user ' || id")
    op.create_check_constraint(op.f("ck_staff_user_erased"), "staff_user", ERASED_STAFF_USER)
    op.execute(REJECT_CHANGE)


def downgrade() -> None:
    """Erased staff accounts stay erased. Loses the progress of retention."""
    op.execute(REJECT_CHANGE_BEFORE)
    op.drop_constraint(op.f("ck_staff_user_erased"), "staff_user")
    op.drop_column("staff_user", "erased_at")
    op.drop_table("redemption_retention")
    op.drop_table("retention_run")
    op.drop_column("campaign", "replies_cleared_at")
    op.drop_index("ix_rollback_free_text", "rollback")
    op.drop_index("ix_customer_active_at", "customer")
    op.drop_column("customer", "active_at")
