"""Who is logged in, and how fast passwords may be guessed.

A login is a signed cookie, so it outlives a restart of the server; it is worth nothing once another name or password is
set, or its owner has logged out. Guessing is slowed down by where it comes from, so that nobody locks the owner out.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from backend.bounded import read_json
from backend.errors import UserError

FAILURES = 8  # wrong passwords in a minute of one caller
ALL_FAILURES = 40  # of all together; from then on a caller has one
FAILURE_SECONDS = 60.0
# A caller above its limit is still heard so often, as it may share its address with the owner.
PAUSE_SECONDS = 5.0
# Addresses that a proxy tells may be invented; above the limit of all so many new ones are heard at once, one a second.
BURST = 5
CALLERS = 10_000  # remembered at most
SESSION_SECONDS = 30 * 24 * 3600
DEVICE_SECONDS = 365 * 24 * 3600
KEY_FILE = ".login.json"

_KEY_BYTES = 32
_TOKEN = re.compile(r"(\d{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")
_SESSION, _DEVICE = "session", "device"


@dataclass(frozen=True)
class Account:
    """The one user of a server that asks for a password.

    Args:
        username: to log in with.
        password: to log in with.
        generated: it was made up for this start; logins outlive it all the same.
    """

    username: str
    password: str = field(repr=False)
    generated: bool = False

    def matches(self, username: str, password: str) -> bool:
        """Compare in a time that does not depend on where the texts differ."""
        right = [
            hmac.compare_digest(hashlib.sha256(given.encode()).digest(), hashlib.sha256(known.encode()).digest())
            for given, known in ((username, self.username), (password, self.password))
        ]
        return all(right)


class Logins:
    """The cookies of those who are logged in.

    Args:
        account: whose they are.
        folder: where the key lies that signs them, readable by its owner only; None keeps it in memory, and then a
            restart logs everybody out.
    """

    def __init__(self, account: Account, folder: Path | None = None) -> None:
        known = "" if account.generated else account.password
        self._whose = hashlib.sha256(f"{account.username}\0{known}".encode()).hexdigest()
        self._file = folder / KEY_FILE if folder is not None else None
        self._key, self._ended = _read(self._file) if self._file is not None else (None, {})
        if self._key is None:
            self._key = secrets.token_bytes(_KEY_BYTES)
            self._write()

    def issue(self) -> str:
        """A cookie's value for somebody who has logged in."""
        return self._issue(_SESSION, SESSION_SECONDS)

    def issue_device(self) -> str:
        """A cookie's value that shows later that somebody has logged in from this browser before."""
        return self._issue(_DEVICE, DEVICE_SECONDS)

    def is_valid(self, token: str) -> bool:
        """Whether this is the cookie of somebody who is logged in."""
        name = self._name(_SESSION, token)
        return name is not None and name not in self._ended

    def device(self, token: str) -> str | None:
        """The name of a browser that the owner has logged in from before; None for any other."""
        return self._name(_DEVICE, token)

    def end(self, token: str) -> None:
        """Log out: the cookie is worth nothing from now on."""
        name, now = self._name(_SESSION, token), time.time()
        if name is not None:
            self._ended = {known: end for known, end in self._ended.items() if end > now}
            self._ended[name] = int(token.partition(".")[0])
            self._write()

    def _issue(self, kind: str, seconds: int) -> str:
        end, name = int(time.time()) + seconds, secrets.token_hex(16)
        return f"{max(end, 0)}.{name}.{self._sign(kind, max(end, 0), name)}"

    def _name(self, kind: str, token: str) -> str | None:
        found = _TOKEN.fullmatch(token) if token.isascii() else None
        if found is None or int(found[1]) <= time.time():
            return None
        right = self._sign(kind, int(found[1]), found[2])
        return found[2] if hmac.compare_digest(right, found[3]) else None

    def _sign(self, kind: str, end: int, name: str) -> str:
        assert self._key is not None
        return hmac.new(self._key, f"{kind} {self._whose} {end} {name}".encode(), hashlib.sha256).hexdigest()

    def _write(self) -> None:
        """Keep the key and who has logged out; where the disk refuses it, logins end with this process."""
        if self._file is None or self._key is None:
            return
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}.new")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump({"key": self._key.hex(), "ended": self._ended}, file)
            os.replace(temporary, self._file)
        except OSError:
            temporary.unlink(missing_ok=True)


def _read(file: Path) -> tuple[bytes | None, dict[str, int]]:
    """A key that only its owner can read, and who has logged out."""
    try:
        status = file.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            return None, {}
        told = read_json(file, None)
        key, ended = bytes.fromhex(told["key"]), {str(name): int(end) for name, end in told["ended"].items()}
    except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None, {}
    return (key, ended) if len(key) == _KEY_BYTES else (None, {})


@dataclass(frozen=True)
class Caller:
    """Where an attempt to log in comes from.

    Attributes:
        name: an address, a network or a browser that is known.
        known: the owner has logged in from that browser before.
        forwarded: a proxy tells the address, which may be invented.
    """

    name: str
    known: bool = False
    forwarded: bool = False


def caller_of(client: tuple[str, int] | None, headers: Mapping[str, str], device: str | None) -> Caller:
    """Who wants to log in.

    Args:
        client: address and port, as the server tells them; port 0 where a proxy has told the address.
        headers: of the request; the last entry of X-Forwarded-For, which the nearest proxy has added, is believed of a
            proxy of this machine or network alone.
        device: the browser's name, if it is known.
    """
    if device is not None:
        return Caller(device, known=True)
    address, port = client or ("", 0)
    try:
        near = ip_address(address).is_private
        forwarded = headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
        if near and forwarded:
            return Caller(f"{_network(address)} {_network(forwarded)}", forwarded=True)
        return Caller(_network(address), forwarded=port == 0)
    except ValueError:
        return Caller("elsewhere", forwarded=True)


def _network(address: str) -> str:
    """An address; of IPv6 the network, as one subscriber has all of its addresses."""
    found = ip_address(address)
    return str(IPv6Address(int(found) >> 64 << 64)) if found.version == 6 else str(found)


class Throttle:
    """How fast passwords may be guessed. Each caller has an allowance of its own; see the constants of this module."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._heard: dict[str, float] = {}
        self._spare, self._spare_at = float(BURST), time.monotonic()

    def hears(self, caller: Caller) -> bool:
        """Whether a password of this caller is looked at now; asked once for each attempt."""
        now = time.monotonic()
        recent = {name: sum(moment > now - FAILURE_SECONDS for moment in times) for name, times in self._of_strangers()}
        crowded = not caller.known and sum(recent.values()) >= ALL_FAILURES
        own = self._recent(caller.name, now)
        if own >= (1 if crowded else FAILURES):
            heard = now - self._heard.get(caller.name, -PAUSE_SECONDS) >= PAUSE_SECONDS
        elif crowded and caller.forwarded:
            heard = self._has_spare(now)
        else:
            heard = True
        if heard:
            self._heard[caller.name] = now
        return heard

    def failed(self, caller: Caller) -> None:
        """The password was wrong."""
        name = f"known {caller.name}" if caller.known else caller.name
        self._failures.setdefault(name, deque(maxlen=FAILURES)).append(time.monotonic())
        self._failures.move_to_end(name)
        while len(self._failures) > CALLERS:
            gone, _ = self._failures.popitem(last=False)
            self._heard.pop(gone.removeprefix("known "), None)

    def _recent(self, name: str, now: float) -> int:
        times = [*self._failures.get(name, ()), *self._failures.get(f"known {name}", ())]
        return sum(moment > now - FAILURE_SECONDS for moment in times)

    def _of_strangers(self) -> list[tuple[str, deque[float]]]:
        start = time.monotonic() - FAILURE_SECONDS
        for name in [name for name, times in self._failures.items() if times[-1] <= start]:
            del self._failures[name]
        self._heard = {name: at for name, at in self._heard.items() if at > start}
        return [(name, times) for name, times in self._failures.items() if not name.startswith("known ")]

    def _has_spare(self, now: float) -> bool:
        self._spare = min(float(BURST), self._spare + now - self._spare_at)
        self._spare_at = now
        if self._spare < 1:
            return False
        self._spare -= 1
        return True
