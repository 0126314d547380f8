"""Serves LoRA Loom in the browser: `python webui.py --help`."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence

from backend import gpus, serving
from backend.bodies import Uploads
from backend.connections import hurried
from backend.errors import UserError, speak_any_name
from backend.guard import Guard
from backend.jobs import Jobs
from backend.sweeping import Sweeper
from backend.worker import GenerateWorker, has_gpu
from backend.workspace import DEMO_DATASET, PROJECT, Workspace

UPLOAD_LIMIT = "4gb"
CACHE_SWEEP_SECONDS, CACHE_AGE_SECONDS = 3600, 24 * 3600
COPIES = ".gradio"


def check_port(address: str, port: int) -> None:
    """Make sure that the port can be had.

    Raises:
        UserError: when it is taken, or the address is not one of this machine.
    """
    host = address.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise UserError(f"{host} is not an address", "listen") from error
        except PermissionError as error:
            raise UserError(f"port {port} needs root; take one above 1023", "server_port") from error
        except OSError as error:
            raise UserError(
                f"cannot serve on {host} port {port} ({error.strerror}); stop what runs there or name another port",
                "server_port",
            ) from error


def set_environment(workspace: Workspace) -> None:
    """Tell Gradio, which reads this when it is imported, to call nobody and to keep its copies where there is room."""
    copies = workspace.root / COPIES
    copies.mkdir(exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(copies)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Its check at start-up that the server answers must not be sent to a proxy.
    for variable in ("no_proxy", "NO_PROXY"):
        hosts = [os.environ.get(variable), "localhost", "127.0.0.1", "::1"]
        os.environ[variable] = ",".join(filter(None, hosts))


def serve(plan: serving.Plan, workspace: Workspace) -> None:
    """Serve until a signal comes. Jobs go on without us."""
    set_environment(workspace)
    uploads = Uploads(workspace.root / COPIES)
    sweeper = Sweeper(uploads)
    sweeper.start()
    import tabs

    # Both would need the GPU's memory; on a machine without one they only share its cores.
    worker = GenerateWorker(workspace, busy=lambda: has_gpu() and jobs.busy())
    jobs = Jobs(workspace, release=worker.released)
    jobs.reconcile()
    guard = Guard(plan.account, plan.hosts, plan.port, plan.share, workspace.root, uploads)
    demo = tabs.build(serving.Services(workspace, jobs, worker))
    demo.delete_cache = (CACHE_SWEEP_SECONDS, CACHE_AGE_SECONDS)
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    demo.launch(
        server_name=plan.address,
        server_port=plan.port,
        share=plan.share,
        root_path=plan.root_path,
        inbrowser=plan.inbrowser,
        app_kwargs={"lifespan": guard.install},
        # Files in these are shown to whoever may come in; the guard keeps a browser from running any of them.
        allowed_paths=[str(path) for path in (workspace.jobs, workspace.datasets, workspace.outputs)]
        + [str(PROJECT / DEMO_DATASET)],
        max_file_size=UPLOAD_LIMIT,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        footer_links=["settings"],
        quiet=True,
        prevent_thread_lock=True,
        **tabs.LAUNCH,
    )
    # Read for each new connection.
    demo.server.config.http_protocol_class = hurried(demo.server.config.http_protocol_class)
    guard.starting = False
    jobs.run()
    print(serving.greeting(plan), flush=True)
    # After the address, as a driver may take seconds to answer.
    print(gpus.verdict().line, flush=True)
    done.wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # asked again, we end at once
    # First, as the dispatcher may be waiting for its answer.
    worker.close()
    jobs.close()
    demo.close(verbose=False)
    sweeper.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; returns the exit code."""
    speak_any_name()
    flags = serving.parse_flags(argv)
    try:
        plan = serving.make_plan(flags)
        check_port(plan.address, plan.port)
        workspace = Workspace(plan.workspace)
        # A relative path in a form means the same here as in the job that it becomes.
        os.chdir(PROJECT)
        serve(plan, workspace)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
