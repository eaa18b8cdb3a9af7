"""Onecode: marketing offers with one shared voucher code each."""

from __future__ import annotations

import functools
import logging
import re
import secrets
import time
import tomllib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from flask import Flask, Request, Response, g, request
from flask.typing import ResponseReturnValue
from flask_openapi import Info, OpenAPI
from werkzeug.exceptions import BadRequest
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import MapAdapter, RequestRedirect
from whitenoise import WhiteNoise

import webapp.tasks  # noqa: F401 (registers every task)
from webapp import cli
from webapp.accounts import passwords, staff_erasure_actions
from webapp.campaigns import erasure as campaign_erasure
from webapp.core import (
    database_engines,
    database_health,
    database_timeouts,
    logs,
    rate_limit,
    request_commits,
    sessions,
    task_queue,
)
from webapp.core.extensions import babel, csrf, db, login, mail
from webapp.core.json_provider import JsonProvider
from webapp.core.measured_pool import MeasuredQueuePool
from webapp.core.request_limits import LimitedRequest, check_request
from webapp.core.settings import ROOT, Settings, load_settings
from webapp.customers import actions as customer_actions
from webapp.customers.imports import actions as import_actions
from webapp.monitoring import readiness
from webapp.redemptions import erasure as redemption_erasure
from webapp.shop import queries as shop_queries
from webapp.views import access_notes, error_handlers, problem_details, rendering, request_metrics, security_headers
from webapp.views.api import blueprint as api_blueprint
from webapp.views.api import bounces as api_bounces
from webapp.views.api import campaigns as api_campaigns
from webapp.views.api import customers as api_customers
from webapp.views.api import docs as api_docs
from webapp.views.api import metrics as api_metrics
from webapp.views.api import offers as api_offers
from webapp.views.api import personal_data as api_personal_data
from webapp.views.api import redemptions as api_redemptions
from webapp.views.public import blueprint as public_blueprint
from webapp.views.public import campaigns as public_campaigns
from webapp.views.public import redemptions as public_redemptions
from webapp.views.public import security_txt as public_security_txt
from webapp.views.public import shop as public_shop
from webapp.views.staff import accounts as staff_accounts
from webapp.views.staff import (
    audit,  # noqa: F401
    campaign_launch,
    keys,  # noqa: F401
    oidc,  # noqa: F401
    password_reset,  # noqa: F401
    personal_data,  # noqa: F401
    privacy,  # noqa: F401
    profile,  # noqa: F401
    second_factor,  # noqa: F401
    session_pages,  # noqa: F401
    sign_in,  # noqa: F401
    two_step,  # noqa: F401
)
from webapp.views.staff import blueprint as staff_blueprint
from webapp.views.staff import campaigns as staff_campaigns
from webapp.views.staff import home as staff_home
from webapp.views.staff import imports as staff_imports
from webapp.views.staff import offers as staff_offers
from webapp.views.staff import redemptions as staff_redemptions
from webapp.views.staff import shop as staff_shop
from webapp.views.staff import suppressions as staff_suppressions

__all__ = ["create_app"]


REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{8,64}", re.A)


class OnecodeApp(OpenAPI):
    """The Flask app, with OpenAPI support."""

    json_provider_class = JsonProvider
    request_class = LimitedRequest

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        # No view or hook is a coroutine function, so the check for that is skipped.
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        try:
            return super().create_url_adapter(request)
        except BadRequest as error:
            # The Host header is no host name. Without an adapter, the error page could not contain links.
            if request is not None:
                request.routing_exception = error
            return self.url_map.bind("")

    def dispatch_request(self) -> ResponseReturnValue:
        request_commits.start_view()
        return super().dispatch_request()

    def raise_routing_exception(self, request: Request) -> NoReturn:
        if isinstance(request.routing_exception, RequestRedirect):
            # Its URL has the Host header of the request, which the client chooses: a cache must not pass it on.
            url = urlsplit(request.routing_exception.new_url)
            request.routing_exception.new_url = url._replace(scheme="", netloc="").geturl()
        super().raise_routing_exception(request)


def create_app(settings: Settings | None = None) -> Flask:
    """Create the app with its extensions, blueprints, hooks and commands.

    :param settings: by default those of the environment.
    :raises SettingsError: when the environment has invalid settings.
    """
    settings = settings or load_settings()
    app = OnecodeApp(
        "webapp",
        info=Info(title="Onecode", version=get_app_version(), description="Offers with one shared voucher code each."),
        security_schemes={"key": {"type": "http", "scheme": "bearer"}},
        doc_ui=False,
        validation_error_callback=problem_details.validation_problem_response,
        validation_error_model=problem_details.Problem,
        root_path=str(ROOT / "webapp"),
        template_folder=str(ROOT / "templates"),
        static_folder=str(ROOT / "static"),
    )
    app.openapi_version = "3.1.0"
    app.config.from_mapping(_build_config(settings))
    app.url_map.converters |= {"int": rendering.RowIdConverter, "email": rendering.EmailConverter}
    # Registered first: the hooks of extensions parse forms and may reject the request.
    _register_request_hooks(app)
    request_metrics.init_app(app)
    _init_extensions(app, settings)
    _register_blueprints(app)
    passwords.load_shop_name = lambda: shop_queries.get_shop().name
    customer_actions.erasure_hooks = (redemption_erasure.erase_redemption_data, campaign_erasure.clear_reply_texts)
    staff_erasure_actions.staff_erasure_hooks = (
        import_actions.replace_staff_in_imports,
        redemption_erasure.replace_staff_in_rollbacks,
        campaign_erasure.replace_staff_in_campaigns,
    )
    readiness.init_app(app)
    _register_health_checks(app)
    error_handlers.init_app(app)
    access_notes.init_app(app)
    rendering.init_app(app)
    app.jinja_env.globals["app_version"] = get_app_version()
    cli.init_app(app)
    return app


def _build_config(settings: Settings) -> dict[str, Any]:
    """Return the configuration of Flask and its extensions."""
    return {
        "SETTINGS": settings,
        # Also with FLASK_DEBUG, which would show internals to clients.
        "DEBUG": False,
        "SECRET_KEY": settings.secret_key,
        # Only the driver: the parameters of the connection are those of libpq, which SQLAlchemy would read differently.
        "SQLALCHEMY_DATABASE_URI": database_engines.DRIVER_URL,
        "SQLALCHEMY_ENGINE_OPTIONS": {
            "poolclass": MeasuredQueuePool,
            "pool_pre_ping": True,
            # A logged error has the statement, but not its parameters, which may be personal data.
            "hide_parameters": True,
            # 10 + 26 connections: one for each of the 32 threads of the web server (see `serve`), and four more: no
            # thread holds two for long.
            "pool_size": 10,
            "max_overflow": 26,
            # Seconds to wait for a connection; then the response is 503, as when the database is unavailable.
            "pool_timeout": 10,
            "creator": database_engines.build_creator(settings),
        },
        "MAIL_SERVER": settings.mail_server,
        "MAIL_PORT": settings.mail_port,
        "MAIL_USERNAME": settings.mail_username,
        "MAIL_PASSWORD": settings.mail_password,
        "MAIL_USE_TLS": settings.mail_use_tls,
        "MAIL_USE_SSL": settings.mail_use_ssl,
        "MAIL_DEFAULT_SENDER": settings.mail_default_sender,
        "MAIL_SUPPRESS_SEND": False,
        "MAX_CONTENT_LENGTH": 2 * 1024 * 1024,
        # Above Flask's default of 500 kB. The email editor has its own, higher limit (`allow_form_size`).
        "MAX_FORM_MEMORY_SIZE": 2 * 1024 * 1024,
        "WTF_CSRF_TIME_LIMIT": None,
        "SESSION_COOKIE_NAME": sessions.build_cookie_name(settings.public_url),
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "SESSION_COOKIE_SECURE": settings.public_url.startswith("https://"),
        # The signature of the cookie must not expire before the session, which the clock of the database ends.
        "PERMANENT_SESSION_LIFETIME": timedelta(days=settings.session_max_days + 1),
    }


@functools.cache
def get_app_version() -> str:
    """Return the version in pyproject.toml."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def _init_extensions(app: Flask, settings: Settings) -> None:
    app.session_interface = sessions.LazySessionInterface()
    # Before all hooks that use the database.
    database_timeouts.init_app(app)
    db.init_app(app)
    database_engines.init_app(app)
    mail.init_app(app)
    # Registered before the CSRF check, which parses the form.
    rate_limit.init_app(app)
    app.before_request(staff_blueprint.apply_form_size_limit)
    csrf.init_app(app)
    # English is the language of the source; every user-visible text goes through gettext (see CONTRIBUTING.md).
    babel.init_app(app, default_locale="en", default_translation_directories=str(ROOT / "translations"))
    login.init_app(app)
    task_queue.init_app(app)
    if settings.trusted_proxies:
        # Forwarded headers are trusted only behind a configured proxy: otherwise clients could choose their address and
        # evade rate limits.
        proxy_count = settings.trusted_proxies
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=proxy_count, x_proto=proxy_count, x_host=proxy_count
        )
    static = Path(app.static_folder or "")
    app.wsgi_app = WhiteNoise(  # type: ignore[method-assign]
        app.wsgi_app,
        root=static,
        prefix="static/",
        max_age=3600,
        allow_all_origins=False,
        add_headers_function=security_headers.add_charset,
    )
    # Outermost, so that every response passes it.
    security_headers.init_app(app, settings)


def _register_blueprints(app: OpenAPI) -> None:
    # The launch page, imports, and the pages about accounts add their views to the blueprints of the editor, of
    # customers and of accounts, and must be imported before these are registered.
    app.register_blueprint(
        staff_blueprint.create_staff_blueprint(
            staff_home.blueprint,
            staff_accounts.blueprint,
            staff_imports.blueprint,
            staff_suppressions.blueprint,
            staff_offers.blueprint,
            staff_campaigns.blueprint,
            campaign_launch.blueprint,
            staff_redemptions.blueprint,
            staff_shop.blueprint,
        )
    )
    app.register_blueprint(
        public_blueprint.create_public_blueprint(
            public_redemptions.blueprint,
            public_campaigns.blueprint,
            public_shop.blueprint,
            public_security_txt.blueprint,
        )
    )
    app.register_api(
        api_blueprint.create_api_blueprint(
            api_customers.blueprint,
            api_personal_data.blueprint,
            api_bounces.blueprint,
            api_offers.blueprint,
            api_campaigns.blueprint,
            api_redemptions.blueprint,
            api_docs.blueprint,
        )
    )
    app.register_blueprint(api_metrics.create_metrics_blueprint(get_app_version()))


def _register_request_hooks(app: Flask) -> None:
    is_behind_proxy = app.config["SETTINGS"].trusted_proxies > 0

    @app.before_request
    def start_request() -> None:
        g.started_at = time.perf_counter()
        # Use the id assigned by the proxy if its format is safe to log. Without a proxy, clients could send any value.
        forwarded = request.headers.get("X-Request-Id", "") if is_behind_proxy else ""
        g.request_id = forwarded if REQUEST_ID_PATTERN.fullmatch(forwarded) else secrets.token_hex(8)
        check_request(request._get_current_object())  # type: ignore[attr-defined]

    @app.after_request
    def finish_request(response: Response) -> Response:
        if "Cache-Control" not in response.headers and not request.path.startswith("/static/"):
            response.headers["Cache-Control"] = "no-store"
        response.headers["X-Request-Id"] = g.get("request_id", "")
        logs.log_slow_or_failed_request(response, g.get("started_at"))
        return response


def _register_health_checks(app: Flask) -> None:
    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Report liveness."""
        return {"status": "ok", "version": get_app_version()}

    @app.get("/readyz")
    def readyz() -> tuple[dict[str, str], int]:
        """Report readiness: whether the database, which contains the queue, accepts writes."""
        error = readiness.check_readiness(app)
        if error is None:
            return {"status": "ready"}, 200
        if not database_health.report_if_outage(error):
            logging.getLogger(__name__).warning("readiness check failed: %s", error)
        return {"status": readiness.describe_problem(error)}, 503
