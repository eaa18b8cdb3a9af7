"""docs/erd.md is the output of `make erd`."""

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
def new_column() -> Iterator[None]:
    """A column that is not in the diagram yet."""
    table = db.metadata.tables["offer"]
    column: Column[int] = Column("minimum_age", Integer)
    table.append_column(column)
    yield
    table._columns.remove(column)


def test_the_page_is_the_output_of_make_erd(erd: Any) -> None:
    assert (ROOT / "docs" / "erd.md").read_text() == erd.draw(), "run `make erd`"


def test_a_new_column_changes_the_output(erd: Any, new_column: None) -> None:
    assert (ROOT / "docs" / "erd.md").read_text() != erd.draw()


def test_every_table_has_a_description(erd: Any) -> None:
    described = {name for tables in erd.descriptions().values() for name in tables}
    assert described == set(db.metadata.tables)


def test_every_reference_is_drawn_as_a_line(erd: Any) -> None:
    """Foreign keys are solid lines; references without one are dashed."""
    named = {
        (table.name, column.name, column.name.removesuffix("_id"))
        for table in db.metadata.tables.values()
        for column in table.columns
        if column.name.endswith("_id") and not column.foreign_keys
    }
    assert set(erd.UNENFORCED_REFERENCES) == {reference for reference in named if reference[2] in db.metadata.tables}
