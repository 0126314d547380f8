"""Smaller copies of a folder of pictures, for training at several resolutions. No torch.

    python -m backend resize_images_to_resolution SRC DST --max_resolution 512x512,256x256

Every picture is copied byte for byte, and beside the copy, for each size that it is not smaller than, lies one made
from its own pixels: SRC/cat.png gives DST/cat.png, DST/cat+512x512.jpg and DST/cat+256x256.jpg. Folders below are gone
into, other files are copied, hidden ones are left out. Where SRC and DST are the same folder, what is there stays and
nothing is copied. Of an animation the first picture is taken.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from backend.config.tools import ResizeImages, Resizing
from backend.data.decode import cpu_count
from backend.errors import UserError
from backend.tables.buckets import Size
from backend.tables.resizing import count_buckets, target_size
from backend.terminal import ended_by_signals, track, warn
from backend.tools.processes import in_order
from backend.tools.report import Bars, Made, Report, tell
from backend.tools.resize_picture import Look, Outcome, Task, copy, make
from backend.tools.resize_plan import Plan, make_plan, names_of

# Pictures that take as long as a process takes to start: half a second.
FEW = 8
# Pixels decoded at a time, by all processes together: 16 bytes each at most, so less than 5 GB.
MOST_PIXELS = 300_000_000
SHOWN_BROKEN = 20
SHOWN_SIZES = 4

Done = Sequence[tuple[Task, Outcome]]


def run(config: ResizeImages) -> None:
    """The command `resize_images_to_resolution`."""
    with ended_by_signals():
        tell(resize(config.pictures))


def resize(options: Resizing, workers: int | None = None) -> Report:
    """Make the smaller pictures and the copies, and say what was made.

    Args:
        options: the section of the command.
        workers: processes; left out, as many as there are cores, or fewer for a few pictures.

    Raises:
        UserError: there is no picture, none can be read, a file is there already or would be written twice; nothing
            was written then.
        OSError: a file cannot be written, with its name.
        KeyboardInterrupt: Ctrl-C came; the pictures in hand were finished.
    """
    plan = make_plan(options)
    for path, why in plan.broken:
        _warn_broken(options.src / path, why)
    if options.dry_run:
        done: Done = [(task, _expected(task, options)) for task in plan.tasks]
    else:
        done = _make_all(plan, options, workers)
    broken = [(options.src / path, why) for path, why in plan.broken]
    broken += [(task.source, outcome.broken) for task, outcome in done if outcome.broken]
    good = [(task, outcome) for task, outcome in done if not outcome.broken]
    if not good:
        raise UserError(f"no picture in {options.src} can be decoded: {names_of([path for path, _ in broken])}", "src")
    copied = 0
    if plan.copies and not options.dry_run:
        copied = sum(copy(*pair) for pair in track(plan.copies, "copying", len(plan.copies)))
    return report(options, plan, good, sorted(broken), copied)


def _make_all(plan: Plan, options: Resizing, workers: int | None) -> Done:
    look = Look(options.divisible_by, options.interpolation, options.save_as_png)
    workers = workers or max(1, min(cpu_count(), len(plan.tasks) // FEW))
    done = []
    with closing(in_order(partial(make, look=look), plan.tasks, workers, _pixels, MOST_PIXELS)) as outcomes:
        for task, outcome in zip(plan.tasks, track(outcomes, "resizing", len(plan.tasks)), strict=True):
            done.append((task, outcome))
            if outcome.broken:
                _warn_broken(task.source, outcome.broken)
    return done


def _pixels(task: Task) -> int:
    return task.size[0] * task.size[1]


def _expected(task: Task, options: Resizing) -> Outcome:
    sizes = (target_size(*task.size, *target.area, options.divisible_by) for target in task.targets)
    return Outcome(tuple(size for size in sizes if size is not None))


def _warn_broken(path: Path, why: str) -> None:
    warn(f"{path} cannot be decoded ({why}) and is left out")


def report(options: Resizing, plan: Plan, done: Done, broken: Sequence[tuple[Path, str]], copied_bytes: int) -> Report:
    """What was made, or would be.

    Args:
        options: of the run.
        plan: of the run.
        done: the pictures that can be decoded, with what was made of each.
        broken: the others, with why not.
        copied_bytes: of the files that belong to no picture.
    """
    made = _by_area(options, done)
    count = sum(map(len, made.values()))
    verb = "would be made" if options.dry_run else "made"
    originals = sum(1 for task, _ in done for source, _ in task.copies if source == task.source)
    associated = sum(len(task.copies) for task, _ in done) - originals
    size = copied_bytes + sum(outcome.bytes for _, outcome in done)
    kinds = f"{count} smaller, {originals} originals, {associated + len(plan.copies)} other files"
    rows = [(f"{w}x{h}", len(sizes), len(done) - len(sizes), _distinct(sizes)) for (w, h), sizes in made.items()]
    return Report(
        f"{count} smaller pictures {verb} of {len(done)} in {options.dst}",
        options.dry_run,
        () if options.dry_run else (Made(str(options.dst), size, kinds),),
        (
            ("pictures", f"{len(done)}" + (f", and {len(broken)} that cannot be decoded" if broken else "")),
            *((name, f"{number} {verb}, {skipped} skipped") for name, number, skipped, _ in rows),
            ("copies", f"{originals} originals, {len(plan.copies)} other files, {associated} beside a size"),
        ),
        ("size", "pictures", "skipped", "width x height"),
        tuple((name, str(number), str(skipped), sizes) for name, number, skipped, sizes in rows),
        bars=_bars(made) if count else None,
        notes=tuple(_notes(options, plan, done, broken)),
    )


def _by_area(options: Resizing, done: Done) -> dict[Size, list[Size]]:
    made: dict[Size, list[Size]] = {area: [] for area in options.sizes}
    for task, outcome in done:
        for target, size in zip(task.targets, outcome.sizes, strict=True):
            made[target.area].append(size)
    return made


def _distinct(sizes: Iterable[Size]) -> str:
    texts = [f"{width}x{height}" for width, height in sorted(set(sizes))]
    more = f" and {len(texts) - SHOWN_SIZES} more" if len(texts) > SHOWN_SIZES else ""
    return ", ".join(texts[:SHOWN_SIZES]) + more


def _bars(made: dict[Size, list[Size]]) -> Bars:
    counts: dict[Size, int] = {}
    for area, sizes in made.items():
        for bucket, count in count_buckets(sizes, *area).items() if sizes else ():
            counts[bucket] = counts.get(bucket, 0) + count
    names = tuple(f"{width}x{height}" for width, height in counts)
    return Bars("pictures in each aspect-ratio bucket", names, tuple(float(count) for count in counts.values()))


def _notes(options: Resizing, plan: Plan, done: Done, broken: Sequence[tuple[Path, str]]) -> Iterable[str]:
    for path, why in broken[:SHOWN_BROKEN]:
        yield f"{path} cannot be decoded ({why}) and was left out"
    if len(broken) > SHOWN_BROKEN:
        yield f"{len(broken) - SHOWN_BROKEN} more pictures cannot be decoded and were left out"
    yield from _some(
        "had transparency, which is white now; --save_as_png keeps it", done, lambda _, what: what.flattened
    )
    thin = f"would be thinner than divisible_by ({options.divisible_by}) at one size or more and were skipped there"
    yield from _some(thin, done, lambda task, _: _is_thin(task, options))
    if plan.listing.unreadable:
        count, names = len(plan.listing.unreadable), names_of(plan.listing.unreadable)
        yield f"{count} files of formats that cannot be read here stay as they are: {names}; save them as PNG or JPEG"
    if plan.listing.earlier:
        yield f"{len(plan.listing.earlier)} results of an earlier run were left out: {names_of(plan.listing.earlier)}"
    if plan.listing.passed_over:
        names = names_of(plan.listing.passed_over)
        yield f"links to folders, and what is neither file nor folder, were left out: {names}"


def _some(what: str, done: Done, which: Callable[[Task, Outcome], bool]) -> Iterable[str]:
    paths = [task.source for task, outcome in done if which(task, outcome)]
    return [f"{len(paths)} pictures {what}: {names_of(paths)}"] if paths else []


def _is_thin(task: Task, options: Resizing) -> bool:
    return any(
        target_size(*task.size, *area, 1) and not target_size(*task.size, *area, options.divisible_by)
        for area in options.sizes
    )
