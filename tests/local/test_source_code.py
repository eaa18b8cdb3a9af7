"""The hash of the code that an instance was started with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from local import source_code
from webapp.core.settings import Settings


def test_only_files_that_are_loaded_change_the_hash(tmp_path: Path) -> None:
    for name in ("webapp/views/home.py", "static/app.css", "wsgi.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    hashes = [source_code.hash_code(tmp_path)]
    for name in ("docs/README.md", "webapp/__pycache__/home.pyc", "webapp/.home.py.swp", "instance/log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    assert source_code.hash_code(tmp_path) == hashes[0]

    (tmp_path / "static/app.css").write_text("two")
    hashes.append(source_code.hash_code(tmp_path))
    (tmp_path / "webapp/views/home.py").rename(tmp_path / "webapp/views/start.py")
    hashes.append(source_code.hash_code(tmp_path))
    (tmp_path / "wsgi.py").unlink()
    hashes.append(source_code.hash_code(tmp_path))

    assert len(set(hashes)) == 4


def test_the_code_has_changed_if_it_was_not_recorded(test_settings: Settings, tmp_path: Path) -> None:
    settings = replace(test_settings, instance_path=tmp_path)
    assert source_code.has_changed(settings)

    source_code.record_started_code(settings)

    assert not source_code.has_changed(settings)
    (tmp_path / "code").write_text("another hash")
    assert source_code.has_changed(settings)
