"""The data of the demo: a tea shop with customers, offers, campaigns and redemptions of eight weeks.

`seed` fills an empty database. Nothing in `webapp` knows about the demo.
"""
