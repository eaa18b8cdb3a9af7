"""What runs inside django-oscar's own environment: importing it sets Django up, also in each process of a crowd.

Nothing here imports the program, and the program's environment has no oscar.
"""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.oscar.settings")
django.setup()
