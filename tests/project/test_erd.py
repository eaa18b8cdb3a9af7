"""docs/erd.md is what `make erd` draws from the models."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Column, Integer

from webapp.core.extensions import db
from webapp.core.settings import ROOT


@pytest.fixture
def erd(app: Flask) -> Any:
    """The script behind `make erd`."""
    loader = SourceFileLoader("erd", str(ROOT / "scripts" / "erd"))
    spec = spec_from_loader("erd", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def another_column() -> Iterator[None]:
    """A column of a table that nobody has drawn yet."""
    table = db.metadata.tables["offer"]
    column: Column[int] = Column("minimum_age", Integer)
    table.append_column(column)
    yield
    table._columns.remove(column)


def test_the_page_is_what_make_erd_draws(erd: Any) -> None:
    assert (ROOT / "docs" / "erd.md").read_text() == erd.draw(), "run `make erd`"


def test_a_column_that_was_added_is_missed(erd: Any, another_column: None) -> None:
    assert (ROOT / "docs" / "erd.md").read_text() != erd.draw()


def test_every_table_says_what_it_is(erd: Any) -> None:
    told = {name for package in erd.descriptions().values() for name in package}
    assert told == set(db.metadata.tables)


def test_every_column_that_names_a_row_is_drawn_as_a_line(erd: Any) -> None:
    """Solid for a foreign key, dashed for one that the code alone holds."""
    named = {
        (table.name, column.name, column.name.removesuffix("_id"))
        for table in db.metadata.tables.values()
        for column in table.columns
        if column.name.endswith("_id") and not column.foreign_keys
    }
    assert set(erd.UNENFORCED_REFERENCES) == {one for one in named if one[2] in db.metadata.tables}
