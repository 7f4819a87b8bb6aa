"""Wire formats of the server: see ``base.py``."""
