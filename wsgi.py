"""What a WSGI server loads: `wsgi:app`."""

from webapp import create_app

app = create_app()
