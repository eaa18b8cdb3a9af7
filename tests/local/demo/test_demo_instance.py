"""The demo has its own folder, ports and settings."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flask import Flask

from local import demo_instance, preflight
from local.readiness import ServiceError
from webapp.core import settings as app_settings
from webapp.core.settings import Settings

HOSTILE = {
    "DATABASE_URL": "postgresql://onecode:secret@db.example.com/onecode",
    "SECRET_KEY": "of the user",
    "INSTANCE_PATH": "/nowhere",
    "PORT": "9000",
    "PUBLIC_URL": "https://offers.example.com",
    "MAIL_SERVER": "relay.example.com",
    "MAIL_PORT": "587",
    "MAIL_USERNAME": "onecode",
    "MAIL_PASSWORD": "secret",
    "MAIL_USE_TLS": "true",
    "MAIL_PER_SECOND": "1000",
    "MAIL_BOUNCE_ADDRESS": "bounces@example.com",
    "SHOP_NAME": "The user's shop",
    "TRUSTED_PROXIES": "3",
    "WEB_HOST": "0.0.0.0",
}


@pytest.fixture
def user_settings(test_settings: Settings, tmp_path: Path) -> Settings:
    """The settings of a user whose instance is in a folder of this test."""
    return replace(test_settings, instance_path=tmp_path / "instance", port=free_ports())


@pytest.fixture
def run(app: Flask, user_settings: Settings, with_settings: Callable[..., Settings]) -> Callable[..., str]:
    """Run `flask demo …` as that user; return its output."""
    with_settings(instance_path=user_settings.instance_path, port=user_settings.port)
    return lambda *arguments: app.test_cli_runner().invoke(args=["demo", *arguments]).output


def free_ports() -> int:
    """A port for the user such that the demo's port is free and not an ephemeral one."""
    return preflight.find_free_port(21_000) - demo_instance.PORT_OFFSET


def test_the_demo_ignores_the_users_settings(user_settings: Settings) -> None:
    settings = app_settings.load_settings(HOSTILE | demo_instance.get_environment(user_settings, 8100))

    assert settings.uses_embedded_database
    assert settings.uses_mail_sink
    assert (settings.port, settings.mail_port, settings.sink_page_port) == (8100, 8101, 8102)
    assert settings.instance_path == user_settings.instance_path / "demo"
    assert settings.public_url == "http://127.0.0.1:8100"
    assert (settings.web_host, settings.trusted_proxies, settings.shop_name) == ("127.0.0.1", 0, "Onecode")
    assert settings.secret_key != HOSTILE["SECRET_KEY"]
    assert settings.mail_per_second == demo_instance.EMAILS_PER_SECOND


def test_the_demo_sets_every_setting_except_logging(user_settings: Settings) -> None:
    names = set(demo_instance.get_environment(user_settings))
    assert names == set(app_settings.SETTING_NAMES) - {"LOG_FORMAT", "LOG_LEVEL"}


def test_the_demo_chooses_the_default_the_last_or_the_next_free_port(user_settings: Settings) -> None:
    default_port = user_settings.port + 100
    assert demo_instance.choose_port(user_settings) == default_port

    demo_instance.create_folder(user_settings)
    (demo_instance.get_folder(user_settings) / "port").write_text(str(default_port + 20))
    assert demo_instance.choose_port(user_settings) == default_port + 20

    with socket.socket() as other:
        # The port of the mail sink's page.
        other.bind(("127.0.0.1", default_port + 22))
        other.listen()
        assert demo_instance.choose_port(user_settings) == default_port + 30


@pytest.mark.parametrize("command", ["up", "reset"])
def test_a_folder_that_is_not_the_demos_is_neither_used_nor_deleted(
    user_settings: Settings, run: Callable[..., str], command: str
) -> None:
    file = demo_instance.get_folder(user_settings) / "thesis.txt"
    file.parent.mkdir(parents=True)
    file.write_text("ten years of work")

    assert run(command) == (
        f"onecode: {file.parent} is not the demo's folder and was not changed; move it away and try again\n"
    )
    assert [path.name for path in file.parent.iterdir()] == ["thesis.txt"]


def test_a_symbolic_link_to_another_folder_is_not_followed(user_settings: Settings, tmp_path: Path) -> None:
    other = replace(user_settings, instance_path=tmp_path / "other")
    demo_instance.create_folder(other)
    user_settings.instance_path.mkdir()
    demo_instance.get_folder(user_settings).symlink_to(demo_instance.get_folder(other))

    with pytest.raises(ServiceError):
        demo_instance.delete_folder(user_settings, demo_instance.load_demo_settings(user_settings))

    assert demo_instance.exists(other)


def test_down_and_reset_without_a_demo_change_nothing(user_settings: Settings, run: Callable[..., str]) -> None:
    assert run("down") == "The demo was not running.\n"
    assert run("reset") == "There is no demo; nothing was changed.\n"
    assert not user_settings.instance_path.exists()
