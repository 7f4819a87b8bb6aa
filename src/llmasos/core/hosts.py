"""Where a server listens: which hosts are this machine alone, and a socket that is handed over."""

from __future__ import annotations

import ipaddress
import socket

from .environment import handed_over
from .errors import UsageError


def is_loopback(host: str) -> bool:
    """Say whether a host is reached from this machine alone."""
    if host in ("localhost", "localhost."):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def handed_socket() -> socket.socket | None:
    """Return the socket that systemd, or who does as it does, has handed over; it listens already.

    Raises:
        UsageError: it is not one of TCP, or there are several.
    """
    count, first = handed_over()
    if not count:
        return None
    try:
        found = socket.socket(fileno=first)
        listens = bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # a file, or a pipe
        listens = False
    if count > 1 or not listens or found.family not in (socket.AF_INET, socket.AF_INET6):
        raise UsageError(f"{count} sockets were handed over, and one that listens to TCP is taken",
                         hint="one ListenStream=ADDRESS:PORT in the socket unit")  # fmt: skip
    return found
