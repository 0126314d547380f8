"""How the web server may be reached, and what it therefore asks for: flags and environment in, a plan out."""

import argparse
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.errors import UserError
from backend.hosts import is_loopback
from backend.jobs import Jobs
from backend.logins import Account
from backend.worker import GenerateWorker
from backend.workspace import Workspace

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
PORT = 7860
USERNAME = "loom"
MIN_PASSWORD = 8
PASSWORD_VARIABLE = "LORALOOM_PASSWORD"
USERNAME_VARIABLE = "LORALOOM_USERNAME"


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port (1 to 65535)")
    return int(text)


_FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "listen": (
        "address to serve on; without HOST every address of this machine (default: this machine only)",
        {"nargs": "?", "const": EVERYWHERE, "default": LOOPBACK, "metavar": "HOST"},
    ),
    "server_port": (f"default: {PORT}", {"type": _port, "default": PORT, "metavar": "PORT"}),
    "share": ("open a public link through Gradio's server", {"action": "store_true"}),
    "username": (f"name to log in with (default: {USERNAME_VARIABLE} of the environment, else {USERNAME})", {}),
    "password": (
        f"password to log in with; {PASSWORD_VARIABLE} in the environment does the same and is not seen in the list of "
        "processes. A server that can be reached from elsewhere makes one up when there is none",
        {},
    ),
    "allowed_hosts": (
        "Host names to serve and to accept calls from, * for any characters; a server with a password serves every "
        "Host when none is named",
        {"nargs": "+", "action": "extend", "default": [], "metavar": "HOST"},
    ),
    "root_path": ("path below which a proxy serves this, such as /loom", {"default": "", "metavar": "PATH"}),
    "inbrowser": ("open a browser", {"action": "store_true"}),
    "workspace": (
        "where datasets, models, jobs and presets live (default: LORALOOM_WORKSPACE of the environment, else workspace "
        "in the project)",
        {"metavar": "FOLDER"},
    ),
}
# Host names, addresses, with `*` for any characters; no scheme, no port, no path.
_HOST = re.compile(r"[a-z0-9*]([a-z0-9.*_-]*[a-z0-9*])?|\[[0-9a-f:.]+\]", re.IGNORECASE)


@dataclass(frozen=True)
class Services:
    """What the tabs work with."""

    workspace: Workspace
    jobs: Jobs
    worker: GenerateWorker


@dataclass(frozen=True)
class Plan:
    """How to serve.

    Args:
        address: what to bind to.
        port: TCP port.
        account: who may come in; None only where nobody but this machine can reach the server.
        generated: whether the password was made up for this start and must be shown.
        hosts: further Host names to serve, and Origins to accept.
        share: whether to open Gradio's share link.
        root_path: the path below which a proxy serves us.
        inbrowser: whether to open a browser.
        workspace: the workspace's folder; None for the default.
    """

    address: str
    port: int
    account: Account | None
    generated: bool
    hosts: tuple[str, ...]
    share: bool
    root_path: str
    inbrowser: bool
    workspace: str | None


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read webui.py's flags; prints help or a mistake and exits as argparse does."""
    parser = argparse.ArgumentParser(
        prog="webui.py", description="Serves LoRA Loom in the browser.", allow_abbrev=False
    )
    for name, (text, options) in _FLAGS.items():
        parser.add_argument(f"--{name}", help=text, **options)
    return parser.parse_args(argv)


def make_plan(flags: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Plan:
    """Decide who has to log in.

    Nobody has to on loopback, unless a password is given. A server that can be reached from elsewhere (another address,
    a share link, a proxy's path or name) always has a password.

    Raises:
        UserError: for a name without a password, a password too short to be one, or a Host that is none.
    """
    hosts = tuple(host.strip().lower() for part in flags.allowed_hosts for host in part.split(",") if host.strip())
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise UserError(f"{host!r} is not a Host name; give it without scheme, port and path", "allowed_hosts")
    if flags.root_path and not flags.root_path.startswith("/"):
        raise UserError("begins with a slash, such as /loom", "root_path")
    reachable = (
        not is_loopback(flags.listen)
        or flags.share
        or bool(flags.root_path)
        or any(not is_loopback(host) for host in hosts)
    )
    password, field = _given(flags.password, environment, PASSWORD_VARIABLE, "password")
    username, _ = _given(flags.username, environment, USERNAME_VARIABLE, "username")
    if password is not None and len(password) < MIN_PASSWORD:
        raise UserError(f"a password has at least {MIN_PASSWORD} characters", field)
    if flags.username and password is None and not reachable:
        raise UserError(f"needs --password or {PASSWORD_VARIABLE}", "username")
    generated = reachable and password is None
    if generated:
        password = secrets.token_urlsafe(12)
    account = Account(username or USERNAME, password, generated) if password is not None else None
    return Plan(
        address=f"[{flags.listen.strip('[]')}]" if ":" in flags.listen else flags.listen,
        port=flags.server_port,
        account=account,
        generated=generated,
        hosts=hosts,
        share=flags.share,
        root_path=flags.root_path.rstrip("/"),
        inbrowser=flags.inbrowser,
        workspace=flags.workspace,
    )


def greeting(plan: Plan) -> str:
    """What the terminal shows once the server answers."""
    host = "localhost" if plan.address in (EVERYWHERE, "[::]") else plan.address
    lines = [f"LoRA Loom runs on http://{host}:{plan.port}"]
    if plan.account is not None and plan.generated:
        lines.append(
            f"It can be reached from elsewhere. Log in as {plan.account.username} with the password "
            f"{plan.account.password}\n(made for this start; set {PASSWORD_VARIABLE} to choose one)"
        )
    elif plan.account is not None:
        lines.append(f"Log in as {plan.account.username} with the password you gave.")
    return "\n".join(lines)


def _given(flag: str | None, environment: Mapping[str, str], variable: str, name: str) -> tuple[str | None, str]:
    """A value and the name of the place that it comes from; an empty variable is none, an empty flag is a mistake."""
    if flag is not None:
        if not flag.strip():
            raise UserError("is empty", name)
        return flag, name
    return environment.get(variable) or None, variable
