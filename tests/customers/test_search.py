"""Search for customers by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer


@pytest.mark.parametrize("max_index_matches", [1, 3, 5000])
def test_search_by_name_returns_the_same_pages_with_both_plans(
    make_customer: Callable[..., Customer], monkeypatch: pytest.MonkeyPatch, max_index_matches: int
) -> None:
    monkeypatch.setattr(customer_queries, "MAX_NAME_INDEX_MATCHES", max_index_matches)
    ids = [
        make_customer(f"n{n}@example.com", name=name).id for n, name in enumerate(["Ada Byron", "Bob", "Adam", "Ada"])
    ]
    newest_id = make_customer("n4@example.com", name="Adele").id

    assert [found.id for found in customer_queries.list_customers("ad")] == [newest_id, ids[3], ids[2], ids[0]]
    # One more than the limit shows that there is a next page.
    assert [found.id for found in customer_queries.list_customers("ad", limit=1)] == [newest_id, ids[3]]
    assert [found.id for found in customer_queries.list_customers("ad", before=ids[3])] == [ids[2], ids[0]]
    assert [found.id for found in customer_queries.list_customers("ad", after=ids[0])] == [newest_id, ids[3], ids[2]]
    # The nearest ones.
    assert [found.id for found in customer_queries.list_customers("ad", after=ids[0], limit=1)] == [ids[3], ids[2]]
