"""Signed return paths and message ids."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from webapp.campaigns import tokens as campaign_tokens
from webapp.core import signing_keys
from webapp.core.extensions import db
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import Settings, load_settings


@pytest.fixture
def bounce_address(with_settings: Callable[..., Settings]) -> None:
    with_settings(mail_bounce_address="bounces@example.com")


def test_without_a_bounce_address_the_return_path_is_the_sender(app: Flask) -> None:
    assert campaign_tokens.build_return_path(1, 2, "offers@example.com") == "offers@example.com"


@pytest.mark.parametrize("ids", [(1, 1), (3, 1_000_000), (255, 256), (2**63 - 1, 2**63 - 1)])
def test_a_return_path_identifies_the_delivery_in_any_case(bounce_address: None, ids: tuple[int, int]) -> None:
    address = campaign_tokens.build_return_path(*ids, "offers@example.com")
    local = address.partition("@")[0]

    assert address == address.lower()
    assert (address.endswith("@example.com"), local.startswith("bounces+")) == (True, True)
    assert len(local) <= 64 - 19 + len("bounces")
    assert campaign_tokens.parse_return_path(address) == campaign_tokens.parse_return_path(address.upper()) == ids
    assert campaign_tokens.parse_return_path(f" {address.replace('example.com', 'relay.example')} ") == ids


def test_the_longest_local_part_has_64_octets(with_settings: Callable[..., Settings]) -> None:
    with_settings(mail_bounce_address=f"{'b' * 19}@example.com")
    assert len(campaign_tokens.build_return_path(2**63 - 1, 2**63 - 1, "").partition("@")[0]) == 64


def test_a_forged_return_path_is_rejected(bounce_address: None) -> None:
    address = campaign_tokens.build_return_path(3, 7, "")
    other = campaign_tokens.build_return_path(3, 8, "")
    local = address.partition("@")[0]
    flipped = local[:-6] + ("a" if local[-6] != "a" else "b") + local[-5:]
    spliced = other[: len("bounces+") + 8] + address[len("bounces+") + 8 :]
    for forged in (flipped + "@example.com", spliced, "bounces+@example.com", "bounces@example.com", "+", "", "ä+ä@x"):
        assert campaign_tokens.parse_return_path(forged) is None


def test_a_return_path_is_valid_after_a_key_rotation(bounce_address: None) -> None:
    address = campaign_tokens.build_return_path(3, 7, "")
    signing_keys.lock_signing_keys()
    signing_keys.add_key_version("return_path")
    db.session.commit()
    signing_keys.clear_key_cache()
    assert campaign_tokens.parse_return_path(address) == (3, 7)
    assert campaign_tokens.build_return_path(3, 7, "") != address


@pytest.mark.parametrize("bad", ["bounces", "a" * 20 + "@example.com", "b+c@example.com", "b c@example.com", "@x.org"])
def test_an_unusable_bounce_address_is_a_settings_error(bad: str) -> None:
    with pytest.raises(SettingsError, match="MAIL_BOUNCE_ADDRESS"):
        load_settings({"MAIL_BOUNCE_ADDRESS": bad, "DATABASE_URL": "postgresql://x/y", "SECRET_KEY": "x"})


def test_a_message_id_is_stable_unique_and_identifies_the_delivery(app: Flask) -> None:
    message_ids = {campaign_tokens.build_message_id(3, customer, "example.com") for customer in range(1, 200)}
    assert len(message_ids) == len({message_id[:12] for message_id in message_ids}) == 199
    assert campaign_tokens.build_message_id(3, 7, "example.com") == campaign_tokens.build_message_id(
        3, 7, "example.com"
    )
    assert campaign_tokens.parse_message_id(campaign_tokens.build_message_id(3, 7, "example.com")) == (3, 7)
    assert campaign_tokens.parse_message_id(f" {campaign_tokens.build_message_id(2**63 - 1, 0, 'x').upper()}") == (
        2**63 - 1,
        0,
    )


@pytest.mark.parametrize("foreign", ["", "<@x>", "<CABc+1@mail.gmail.com>", "<ä@x>", "x"])
def test_a_foreign_or_forged_message_id_is_rejected(app: Flask, foreign: str) -> None:
    assert campaign_tokens.parse_message_id(foreign) is None
    ours = campaign_tokens.build_message_id(3, 7, "example.com")
    assert campaign_tokens.parse_message_id(ours.replace(ours[5], "a" if ours[5] != "a" else "b", 1)) is None
