"""The server: see ``app.py``."""
