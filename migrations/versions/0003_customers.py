"""Erase customers completely: no personal data in the rows of erased customers or in the audit log."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        "update customer set email = 'erased ' || id, email_as_given = 'erased customer', name = '', locale = null, "
        "source_id = null where erased_at is not null"
    )
    op.create_check_constraint(
        op.f("ck_customer_erased"),
        "customer",
        "erased_at is null or (email = 'erased ' || id and email_as_given = 'erased customer'"
        " and name = '' and locale is null and source_id is null)",
    )
    op.execute("create index ix_customer_erased_at on customer (erased_at) where erased_at is not null")
    # The audit log is never deleted, so it refers to customers by id.
    op.execute(
        "update audit_entry set subject = 'customer ' || (detail ->> 'id'), "
        "detail = nullif(detail - 'id' - 'was', '{}') "
        "where action in ('customer.created', 'customer.changed') and jsonb_exists(detail, 'id')"
    )


def downgrade() -> None:
    op.drop_index("ix_customer_erased_at", "customer")
    op.drop_constraint(op.f("ck_customer_erased"), "customer")
