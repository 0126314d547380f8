"""`python -m backend.generate`: the generate worker, in a process that holds no more than it needs."""

from backend.lean import OPTIONAL, out_of_sight, uncollected

if __name__ == "__main__":
    with uncollected(), out_of_sight(OPTIONAL):
        from backend.generate.worker import main
    main()
