"""JSON that means one thing only (RFC 8259, RFC 7493): what readers would understand differently is refused."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from flask.json.provider import DefaultJSONProvider


class StrictJson(DefaultJSONProvider):
    """The app's JSON; a body is not read in which an object has a name twice, or NaN or Infinity stand."""

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        return json.loads(s, object_pairs_hook=_object, parse_constant=_no_number, **kwargs)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
