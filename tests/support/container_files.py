"""docker-compose.yml and the Dockerfile, read as an engine reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from webapp.core.settings import ROOT

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"

# The innermost ${NAME}, ${NAME:-otherwise} or ${NAME:?complaint}.
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^${}]*))?\}")


class Missing(Exception):
    """A value that has to be given is not; compose says the same and starts nothing."""


def compose(given: Mapping[str, str]) -> dict[str, Any]:
    """docker-compose.yml with its variables filled in (compose-spec, chapter Interpolation).

    :raises Missing: with what the file says about a value that has to be given.
    """
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    filled: dict[str, Any] = _fill(found, given)
    return filled


def services(given: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """The services, by name; secrets are `secret` unless given."""
    found: dict[str, dict[str, Any]] = compose(given or {"POSTGRES_PASSWORD": "secret", "SECRET_KEY": "secret"})[
        "services"
    ]
    return found


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and what they say, comments and line ends taken out."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]


def environment_of_image() -> dict[str, str]:
    text = next(words for name, words in final_stage() if name == "ENV")
    return dict(re.findall(r"(\w+)=(\S+)", text))


def command(text: str) -> list[str]:
    """What an instruction runs: `CMD ["a", "b"]`, on its own or within HEALTHCHECK."""
    found: list[str] = json.loads(text[text.index("[") :])
    return found


def health_check_of_image() -> list[str]:
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
            raise ValueError(f"a variable that is none: {value}")
        value = shorter
    return value


def _value(match: re.Match[str], given: Mapping[str, str]) -> str:
    name, sign, words = match.groups()
    if given.get(name):
        return given[name]
    if sign == "?":
        raise Missing(f"{name}: {words}")
    return words or ""
