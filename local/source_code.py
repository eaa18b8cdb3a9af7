"""Detect that the source code has changed since an instance was started.

The running processes have loaded the old code, but serve the current static files and templates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from webapp.core import atomic_files
from webapp.core.settings import ROOT, Settings

_SOURCES = (
    "local",
    "migrations",
    "pyproject.toml",
    "requirements.txt",
    "static",
    "templates",
    "translations",
    "webapp",
    "wsgi.py",
)


def record_started_code(settings: Settings) -> None:
    """Store a hash of the code in the instance folder, when its processes are started."""
    atomic_files.write_atomically(_record_path(settings), hash_code(ROOT))


def has_changed(settings: Settings) -> bool:
    """Return whether the code differs from the code that the running processes were started with."""
    try:
        return _record_path(settings).read_text() != hash_code(ROOT)
    except FileNotFoundError:
        # Started by a version that did not store a hash.
        return True


def hash_code(root: Path) -> str:
    """Return a hash of the names and contents of all files that the processes load."""
    digest = hashlib.sha256()
    for path in _list_files(root):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _list_files(root: Path) -> Iterator[Path]:
    """Yield the files in a fixed order, without compiled and hidden ones."""
    for name in _SOURCES:
        for path in sorted([root / name, *(root / name).rglob("*")]):
            parts = path.relative_to(root).parts
            if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
                yield path


def _record_path(settings: Settings) -> Path:
    return settings.instance_path / "code"
