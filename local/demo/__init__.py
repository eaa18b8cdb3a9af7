"""The data of the demo: eight weeks of a tea shop.

`seed` fills an empty database. Nothing in `webapp` knows about the demo.
"""
