"""Real training processes that start fast: `python -m tests.train.forge` forks one for each line that it reads.

What takes long in a new process is importing; here it is done once, and nothing else before the fork.
"""

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Self

IMPORTED = (
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "transformers.models.clip.modeling_clip",
    "backend.train.loop",
)


class Forge:
    """Starts trainings one after the other; enter it."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.train.forge"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def start(self, argv: list[str], environment: dict[str, str], log: Path) -> int:
        """Start `python -m backend` with these arguments; gives the process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([argv, environment, str(log)]) + "\n")
        self._process.stdin.flush()
        return self._read()["pid"]

    def wait(self) -> int:
        """Until it has ended; gives its exit code, negative for a signal."""
        return self._read()["code"]

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def main() -> None:
    for name in IMPORTED:
        import_module(name)
    from backend.__main__ import main as run

    def tell(**fields: object) -> None:
        print(json.dumps(fields), flush=True)

    tell(ready=True)
    for line in sys.stdin:
        argv, environment, log = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.environ.update(environment)
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(target, 1)
            os.dup2(target, 2)
            code = 1
            try:
                code = run(argv)
            finally:
                sys.stdout.flush()
                os._exit(code)
        tell(pid=pid)
        tell(code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def wait_for(found: Any, running: Any, seconds: float = 120.0) -> bool:
    """Until `found` gives something; False when `running` no longer holds first."""
    deadline = time.monotonic() + seconds
    while not found():
        if not running():
            return bool(found())
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.001)
    return True


if __name__ == "__main__":
    main()
