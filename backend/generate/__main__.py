"""`python -m backend.generate`: the generate worker, in a process that holds no more than it needs."""

import os

from backend import threads
from backend.lean import OPTIONAL, out_of_sight, uncollected

if __name__ == "__main__":
    # Before torch is imported, which reads it. How many there are is for each model to decide (generate/worker.py).
    threads.set_waiting(os.environ)
    with uncollected(), out_of_sight(OPTIONAL):
        from backend.generate.worker import main
    main()
