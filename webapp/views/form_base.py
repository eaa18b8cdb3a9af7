"""The base class of the forms that are sent with POST."""

from __future__ import annotations

from typing import Any

from flask import request
from flask_babel import lazy_gettext as _l
from flask_wtf import FlaskForm
from werkzeug.datastructures import MultiDict


class PostForm(FlaskForm):
    """A form that is read only from the form body of a request.

    Flask-WTF also accepts JSON, which limits that look at `request.form` would not see.
    """

    # The title of the errors, if the input did not cause them.
    errors_title: str | None = None
    # The title of an error that is about none of the fields, such as a concurrent change.
    conflict_title = _l("Nothing was saved.")

    class Meta(FlaskForm.Meta):
        def wrap_formdata(self, form: FlaskForm, formdata: Any) -> Any:
            """Return the data of the form, or None without any."""
            if request.is_json and formdata is not None and not isinstance(formdata, MultiDict):
                return MultiDict()
            return super().wrap_formdata(form, formdata)
