"""A simple browser over HTTP: cookies, forms and a source address."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter


class _SourceAddressAdapter(HTTPAdapter):
    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, source_address=(self._address, 0), **kwargs)


@dataclass
class Form:
    """A form of a page: its action and its values."""

    action: str
    is_multipart: bool
    values: dict[str, str] = field(default_factory=dict)


class _FormParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._open: Form | None = None
        self._select = self._area = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        name, value = given.get("name", ""), given.get("value", "")
        if tag == "form" and given.get("method", "get").lower() == "post":
            self._open = Form(given.get("action", ""), given.get("enctype", "") == "multipart/form-data")
            self.forms.append(self._open)
        elif self._open is None:
            return
        elif tag == "input" and name and given.get("type") not in ("file", "submit"):
            if given.get("type") not in ("checkbox", "radio") or "checked" in given:
                self._open.values[name] = value
        elif tag == "textarea":
            self._area = name
            self._open.values[name] = ""
        elif tag == "select":
            self._select = name
        elif tag == "option" and self._select and ("selected" in given or self._select not in self._open.values):
            self._open.values[self._select] = value

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = None
        elif tag == "select":
            self._select = ""
        elif tag == "textarea":
            self._area = ""

    def handle_data(self, data: str) -> None:
        if self._open is not None and self._area:
            self._open.values[self._area] += data


class HttpBrowser:
    """Requests pages and submits their forms. Trusts a single certificate."""

    def __init__(self, certificate: str, address: str = "127.0.0.1") -> None:
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.verify = certificate
        self.http.mount("https://", _SourceAddressAdapter(address))

    def get(self, url: str, **more: Any) -> requests.Response:
        return self.http.get(url, timeout=30, **more)

    def submit(
        self, page: requests.Response, to: str = "", file: tuple[str, str, str] | None = None, **typed: str
    ) -> requests.Response:
        """Fill in and submit a form of a page, other than the one to sign out.

        :param to: a part of the form's action, if the page has several forms.
        :param file: name, text and media type of the upload in its field `file`.
        """
        parser = _FormParser()
        parser.feed(page.text)
        form = next(form for form in parser.forms if to in (form.action or page.url) and "sign-out" not in form.action)
        headers = {"Referer": page.url, "Origin": re.match(r"https?://[^/]+", page.url)[0]}  # type: ignore[index]
        where = urljoin(page.url, html.unescape(form.action) or page.url)
        return self.http.post(
            where, data=form.values | typed, files={"file": file} if file else None, headers=headers, timeout=60
        )
