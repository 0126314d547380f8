"""Where the processes of a run meet: those of one machine on its loopback alone, others at the address that is named.

torch itself lets the first process listen at every address of the machine, so it is given a socket of ours.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from datetime import timedelta
from ipaddress import ip_address

from torch.distributed import TCPStore

from backend.config.training.devices import PORT
from backend.errors import UserError
from backend.processes import MEETING, Place

LOOPBACK = "127.0.0.1"
BACKLOG = 1024
# Of an interface's address, linux/sockios.h.
SIOCGIFADDR = 0x8915
# What torch's two ways of talking take their sockets' interface from.
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def is_local(own: Place, environment: Mapping[str, str]) -> bool:
    """Whether all processes of a run are on this machine, as far as their launcher tells.

    Args:
        own: this process.
        environment: with MASTER_ADDR, and LOCAL_WORLD_SIZE where the launcher says how many are here.
    """
    if "LOCAL_WORLD_SIZE" in environment:
        return own.local_size == own.size
    return _is_loopback(environment.get("MASTER_ADDR", ""))


def prepare(own: Place) -> None:
    """Set in the environment from which of the machine's addresses this process talks to the others.

    With one machine that is loopback whatever was set: nobody else has business there.
    """
    address = os.environ.get("MASTER_ADDR", "")
    if is_local(own, os.environ):
        interface = interface_to(LOOPBACK)
        if interface:
            os.environ.update(dict.fromkeys(INTERFACES, interface))
        if not launcher_keeps_store(os.environ):
            os.environ["MASTER_ADDR"] = LOOPBACK
            os.environ.setdefault("MASTER_PORT", str(PORT))
    elif INTERFACES[0] not in os.environ:
        interface = interface_to(address)
        if interface:
            os.environ[INTERFACES[0]] = interface


def launcher_keeps_store(environment: Mapping[str, str]) -> bool:
    """Whether torchrun itself listens where the processes meet."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def make_store(own: Place, environment: Mapping[str, str], wait: timedelta) -> TCPStore | None:
    """Where the processes find each other's addresses; None where the launcher keeps it.

    Args:
        own: this process; the first one listens.
        environment: with MASTER_ADDR and MASTER_PORT.
        wait: how long to wait for the others.

    Raises:
        UserError: the port is taken.
        RuntimeError: the first process is not found.
        KeyError, ValueError: the environment says no place.
    """
    if launcher_keeps_store(environment):
        return None
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    if not 0 < port < 2**16:
        raise ValueError(f"{port} is no port")
    if own.rank:
        return TCPStore(address, port, own.size, False, wait)
    descriptor = _inherited(environment)
    if descriptor is None:
        descriptor = _listening(address, port)
    if descriptor is None:
        return TCPStore(address, port, own.size, True, wait)
    # The store closes it at its end.
    return TCPStore(address, port, own.size, True, wait, master_listen_fd=descriptor)


def _inherited(environment: Mapping[str, str]) -> int | None:
    """The socket that our launcher has opened for this process."""
    told = environment.get(MEETING, "")
    try:
        handed = socket.socket(fileno=int(told))
    except (OSError, ValueError):
        return None
    try:
        listens = bool(handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        right = listens and handed.getsockname()[1] == int(environment["MASTER_PORT"])
        handed.set_inheritable(False)
        return handed.fileno() if right else None
    except (OSError, ValueError, IndexError):
        return None
    finally:
        handed.detach()


def _listening(address: str, port: int) -> int | None:
    """A socket that listens at that address of this machine alone; None where it is not this machine's, behind a
    router say, or is a name without an address.

    Raises:
        UserError: the port is taken.
    """
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return None
    for family, kind, protocol, _, place in found:
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(BACKLOG)
            return listener.detach()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                message = f"port {port} of {address} is taken; name another one, or leave it out with one machine"
                raise UserError(message, "main_process_port") from error
        finally:
            listener.close()
    return None


def _is_loopback(address: str) -> bool:
    try:
        return address.lower() == "localhost" or ip_address(address).is_loopback
    except ValueError:
        return False


def interface_to(address: str) -> str | None:
    """The network interface through which another machine is reached, or whose own the address is; None if unknown.

    What a machine's name stands for, which is taken otherwise, is often an address that others do not reach.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                if _address_of(probe, name) == own:
                    return name
    except OSError:
        return None
    return None


def _address_of(probe: socket.socket, interface: str) -> str | None:
    try:
        found = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
    except OSError:
        return None
    return socket.inet_ntoa(found[20:24])
