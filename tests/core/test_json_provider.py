"""JSON: ambiguous bodies are rejected, and texts are translated."""

from __future__ import annotations

import pytest
from flask import Flask
from flask_babel import lazy_gettext as _l


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '[{"a": {"b": 1, "b": 1}}]', "NaN", "[Infinity]", "-Infinity", b'"\xff"', "", "{"]
)
def test_ambiguous_json_is_rejected(app: Flask, text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        app.json.loads(text)


def test_unambiguous_json_is_parsed(app: Flask) -> None:
    assert app.json.loads('{"a": [1, 2.5, null], "b": {"a": "ü"}}'.encode()) == {"a": [1, 2.5, None], "b": {"a": "ü"}}


def test_lazy_texts_and_unpaired_surrogates_are_serialised(app: Flask) -> None:
    assert app.json.dumps({"text": _l("Save")}) == '{"text":"Save"}'
    assert app.json.dumps(["\ud800"]) == '["\\ud800"]'


def test_other_objects_are_not_serialised(app: Flask) -> None:
    with pytest.raises(TypeError):
        app.json.dumps({"object": object()})
