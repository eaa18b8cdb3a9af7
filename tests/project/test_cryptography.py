"""The page on cryptography lists every module that uses it."""

from __future__ import annotations

import re

from webapp.core.settings import ROOT

USE = re.compile(r"\b(hashlib|hmac\.(?:new|digest)|AESGCM|HKDF|Cipher\(|PasswordHasher\(|URLSafe\w*Serializer\()")


def test_the_page_lists_every_module_that_uses_cryptography() -> None:
    page = (ROOT / "docs/cryptography.md").read_text("utf-8")
    modules = [path for path in (ROOT / "webapp").rglob("*.py") if USE.search(path.read_text("utf-8"))]
    assert len(modules) > 10
    assert [str(path.relative_to(ROOT)) for path in modules if f"`{path.relative_to(ROOT)}`" not in page] == []
