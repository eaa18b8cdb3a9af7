"""A shop set up by oscar's guide.

`OSCAR_DATABASE` names its database (name, user and host as JSON).
"""

import json
import os

from oscar import INSTALLED_APPS as OSCAR_APPS
from oscar.defaults import *  # noqa: F403

SECRET_KEY = "only-for-measuring"
DEBUG = False
USE_TZ = True
SITE_ID = 1
INSTALLED_APPS = OSCAR_APPS
# Connections are persistent, as in a server. Each request is a transaction, as the guide recommends;
# shop.py delimits the requests.
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "CONN_MAX_AGE": None,
        **json.loads(os.environ["OSCAR_DATABASE"]),
    }
}
HAYSTACK_CONNECTIONS = {"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
# As in oscar's sandbox.
OSCAR_INITIAL_ORDER_STATUS = "Pending"
OSCAR_INITIAL_LINE_STATUS = "Pending"
OSCAR_ORDER_STATUS_PIPELINE = {
    "Pending": ("Being processed", "Cancelled"),
    "Being processed": ("Processed", "Cancelled"),
    "Cancelled": (),
}
OSCAR_DEFAULT_CURRENCY = "EUR"
