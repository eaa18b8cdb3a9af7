"""docker-compose.yml and the Dockerfile, parsed as a container engine parses them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from webapp.core.settings import ROOT

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"

# The innermost ${NAME}, ${NAME:-default} or ${NAME:?error message}.
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^${}]*))?\}")


class MissingValue(Exception):
    """A required variable is not set; Compose reports the same and starts nothing."""


def compose(given: Mapping[str, str]) -> dict[str, Any]:
    """Return docker-compose.yml with its variables replaced.

    See the chapter Interpolation of the Compose specification.

    :raises MissingValue: with the file's error message about a required variable.
    """
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    filled: dict[str, Any] = _fill(found, given)
    return filled


def services(given: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Return the services by name; secrets are `secret` unless given."""
    found: dict[str, dict[str, Any]] = compose(given or {"POSTGRES_PASSWORD": "secret", "SECRET_KEY": "secret"})[
        "services"
    ]
    return found


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions and arguments, without comments."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]


def image_environment() -> dict[str, str]:
    text = next(words for name, words in final_stage() if name == "ENV")
    return dict(re.findall(r"(\w+)=(\S+)", text))


def command(text: str) -> list[str]:
    """Return the command of `CMD ["a", "b"]`, alone or within HEALTHCHECK."""
    found: list[str] = json.loads(text[text.index("[") :])
    return found


def image_health_check() -> list[str]:
    return command(next(words for name, words in final_stage() if name == "HEALTHCHECK"))


def _fill(value: Any, given: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(part, given) for key, part in value.items()}
    if isinstance(value, list):
        return [_fill(part, given) for part in value]
    if not isinstance(value, str):
        return value
    while "${" in value:
        shorter = _VARIABLE.sub(lambda match: _value(match, given), value)
        if shorter == value:
            raise ValueError(f"not a variable: {value}")
        value = shorter
    return value


def _value(match: re.Match[str], given: Mapping[str, str]) -> str:
    name, sign, words = match.groups()
    if given.get(name):
        return given[name]
    if sign == "?":
        raise MissingValue(f"{name}: {words}")
    return words or ""
