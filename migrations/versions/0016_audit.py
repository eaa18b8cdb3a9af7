"""Record origins in the audit log, protect it, count accesses, and name who entered redemptions and created links."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

# A second key of the same name gets the number of the key, which makes the new name unique, unless that is taken, too.
RENAME_DUPLICATES = """
do $$
begin
  loop
    update api_key set name = name || ' (' || id || ')'
    where id in (
      select id from (
        select id, row_number() over (partition by lower(name) order by id) as position
        from api_key where revoked_at is null
      ) keys
      where position > 1
    );
    exit when not found;
  end loop;
end
$$
"""
CREATE_TRIGGER = """
create function reject_audit_entry_change() returns trigger language plpgsql as $$
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
    op.add_column("audit_entry", sa.Column("address", sa.Text(), nullable=True))
    op.add_column("audit_entry", sa.Column("staff_session_id", sa.BigInteger(), nullable=True))
    op.add_column("audit_entry", sa.Column("api_key_id", sa.BigInteger(), nullable=True))
    op.create_index("ix_audit_entry_at", "audit_entry", ["at", "id"], unique=False)
    op.create_index("ix_audit_entry_actor", "audit_entry", ["actor", "at", "id"], unique=False)
    op.create_index("ix_audit_entry_subject", "audit_entry", ["subject", "at", "id"], unique=False)
    op.create_index(
        "ix_audit_entry_action_group",
        "audit_entry",
        [sa.text("rtrim(split_part(action, '.', 1), 's')"), "at", "id"],
        unique=False,
    )
    op.execute(CREATE_TRIGGER)
    op.execute(
        "create trigger append_only before update or delete on audit_entry "
        "for each row execute function reject_audit_entry_change()"
    )
    op.execute(
        "create trigger no_truncate before truncate on audit_entry "
        "for each statement execute function reject_audit_entry_change()"
    )
    op.create_table(
        "access_count",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("period", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("staff_session_id", sa.BigInteger(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_count")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        "uq_access_count_period",
        "access_count",
        ["period", "kind", "account", "address", "staff_session_id", "subject"],
        unique=True,
    )
    op.create_index("ix_access_count_period_id", "access_count", ["period", "id"], unique=False)
    op.add_column("invitation", sa.Column("created_by", sa.BigInteger(), nullable=True))
    op.create_foreign_key(
        op.f("fk_invitation_created_by"), "invitation", "staff_user", ["created_by"], ["id"], ondelete="CASCADE"
    )
    op.execute(RENAME_DUPLICATES)
    op.create_index(
        "uq_api_key_name",
        "api_key",
        [sa.text("lower(name)")],
        unique=True,
        postgresql_where=sa.text("revoked_at is null"),
    )
    op.add_column("redemption", sa.Column("staff_user_id", sa.BigInteger(), nullable=True))
    op.add_column("rollback", sa.Column("staff_user_id", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """The origins of audit entries, the counts of accesses, and who entered redemptions and created links are lost."""
    op.drop_column("rollback", "staff_user_id")
    op.drop_column("redemption", "staff_user_id")
    op.drop_index("uq_api_key_name", table_name="api_key")
    op.drop_column("invitation", "created_by")
    op.drop_table("access_count")
    op.execute("drop trigger no_truncate on audit_entry")
    op.execute("drop trigger append_only on audit_entry")
    op.execute("drop function reject_audit_entry_change()")
    for name in ("action_group", "subject", "actor", "at"):
        op.drop_index(f"ix_audit_entry_{name}", table_name="audit_entry")
    for column in ("api_key_id", "staff_session_id", "address"):
        op.drop_column("audit_entry", column)
