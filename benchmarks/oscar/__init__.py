"""Code that runs in django-oscar's environment.

Importing it sets up Django, also in each client process.

Nothing here imports the application, whose environment has no oscar.
"""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.oscar.settings")
django.setup()
