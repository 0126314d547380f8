"""Names of machines as browsers send them: what a Host header says, and whether it means this machine."""

import re
from ipaddress import IPv6Address, ip_address

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_PORT = re.compile(r":(\d{1,5})?")
_LONGEST = 255


def host_name(authority: str) -> str:
    """The name in a Host header or the like, in lower case: `a.b:7860` gives `a.b`, `[::1]:80` gives `[::1]`.

    A name with a dot at its end is the same name. Everything that is no name or address with at most a port (users,
    paths, letters beyond ASCII, something behind a bracket) gives "".
    """
    authority = authority.strip(" \t").lower()
    if authority.startswith("["):
        end = authority.find("]") + 1
        name, port = authority[:end], authority[end:]
        known = _is_ipv6(name[1:-1])
    else:
        name, colon, number = authority.partition(":")
        port = colon + number
        known = len(name) <= _LONGEST and _NAME.fullmatch(name) is not None
    if not known or (port and not _is_port(port)):
        return ""
    return name.removesuffix(".")


def _is_port(text: str) -> bool:
    found = _PORT.fullmatch(text) if text.isascii() else None
    return found is not None and int(found[1] or 0) < 2**16


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text


def is_loopback(host: str) -> bool:
    """Whether a name or address (brackets allowed, no port) means this machine."""
    host = host.lower()
    if host == "localhost":
        return True
    try:
        return ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host).is_loopback
    except ValueError:
        return False
