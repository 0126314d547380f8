"""Takes pictures and captions that came through the browser into a dataset's folder.

Nothing that arrives is trusted: only pictures that can be decoded and short texts are kept, under names that are made
here; names inside a ZIP never become paths (tabs/archives.py). Which caption belongs to which picture is decided by
where they stood and what they were called (tabs/matching.py), which is remembered (tabs/origins.py).
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image

from backend.bounded import decoded, split_lines
from backend.config.dataset import MOST_REPEATS
from backend.errors import UserError, workspace_errors
from backend.images import DECODE_ERRORS, EXTENSIONS, FORMATS, opened, reason
from backend.picture_folder import CAPTION_EXTENSIONS
from backend.workspace import make_slug
from tabs.archives import CAPTION_BYTES, FILE_BYTES, FILES, TOTAL_BYTES, Item, name_of, suffix_of, unpack
from tabs.matching import Matches, Sent, Slot, Source, match, slug_of
from tabs.origins import Kept, Origins, caption_bytes, digest_of

__all__ = ["CAPTION_BYTES", "FILES", "FILE_BYTES", "TOTAL_BYTES", "make_slug"]

PICTURES = EXTENSIONS
CAPTIONS = CAPTION_EXTENSIONS
PIXELS = 100_000_000
MIN_SIDE = 8
# More than this before a folder's name is a year or a number of something else.
MOST_NUMBERED = min(1000, MOST_REPEATS)
SHOWN = 40
EXAMPLES = 3
NUMBERED = re.compile(r"(\d{1,6})_(.*\S.*)")
# Folders above the numbered ones that hold regularisation pictures.
REGULARISATION = re.compile(r"reg(_?(data|images?|dir)|ulari[sz]ation(_?images?)?)?", re.IGNORECASE)


@dataclass(frozen=True)
class Numbered:
    """A folder of a ZIP that says its repeats, as `10_shs dog` does.

    Attributes:
        name: of the folder here.
        repeats: how often its pictures are shown.
        tokens: what stands for a caption where there is none.
        is_reg: its pictures are for regularisation.
    """

    name: str
    repeats: int
    tokens: str
    is_reg: bool


@dataclass
class Report:
    """What became of an upload.

    Attributes:
        pictures: names under which pictures were kept.
        captions: how many captions were.
        refused: pairs of the name that was sent and why it was not taken.
        notes: what else there is to know, a line each.
        numbered: the folders that say their repeats.
        again: how many of the pictures were there already.
    """

    pictures: list[str] = field(default_factory=list)
    captions: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbered: list[Numbered] = field(default_factory=list)
    again: int = 0

    def text(self) -> str:
        """The report in words, one line, and the notes and refusals below."""
        lines = [f"Taken: {_count(len(self.pictures), 'picture')} and {_count(self.captions, 'caption')}."]
        if self.again:
            lines.append(f"Already here: {_count(self.again, 'picture')} of them.")
        lines += self.notes
        if self.refused:
            lines.append(f"Left out: {len(self.refused)}")
            lines += [f"{name}: {why}" for name, why in self.refused[:SHOWN]]
            lines += [f"and {len(self.refused) - SHOWN} more"] if len(self.refused) > SHOWN else []
        return "\n".join(lines)


def take(files: Sequence[Path | str], folder: Path, others: Sequence[Path] = (), numbered: bool = False) -> Report:
    """Take uploaded files (pictures, captions, ZIP files of them) into a folder of pictures.

    A caption goes with the picture of its folder and name, of this upload or already there; see `tabs.matching`. A
    picture whose name is taken gets a number, unless the one that is there is the same. A caption that is there stays,
    unless one of the same folder and name comes again.

    Args:
        files: what the browser has sent, already on disk.
        folder: made if it is not there.
        others: further folders of the dataset, whose pictures may get captions too.
        numbered: put pictures out of folders such as `10_shs dog` into folders of their own beside `folder`.

    Raises:
        UserError: the disk is full, or nothing at all could be taken.
    """
    report = Report()
    with workspace_errors("upload"):
        folder.mkdir(parents=True, exist_ok=True)
        work = _Taking(folder, others, numbered, report)
        captions: list[Sent] = []
        for item in unpack([(Path(path), name_of(path)) for path in files], work.refuse):
            if item.is_caption:
                captions += work.read(item)
            else:
                work.keep(item)
        work.give(captions)
    if not report.pictures and not report.captions:
        reasons = "; ".join(f"{name}: {why}" for name, why in report.refused[:3])
        raise UserError(f"nothing could be taken{f' ({reasons})' if reasons else ''}; send pictures or a ZIP", "upload")
    return report


def write_caption(folder: Path, stem: str, text: str) -> None:
    """Write the caption of the picture of this stem, in place of one it may have."""
    first, *others = CAPTIONS
    _write(folder / f"{stem}{first}", tidy(text).encode())
    for suffix in others:
        (folder / f"{stem}{suffix}").unlink(missing_ok=True)


def tidy(text: str) -> str:
    """A caption as it is kept: its lines, without blanks at their ends and empty ones around them."""
    return "\n".join(line.rstrip() for line in split_lines(text)).strip()


def numbered_of(source: Source) -> Numbered | None:
    """What the innermost numbered folder above a file of a ZIP says; None where there is none."""
    parts = source.folder.split("/") if source.origin else []
    for place in range(len(parts) - 1, -1, -1):
        found = NUMBERED.fullmatch(parts[place])
        if found and int(found[1]) <= MOST_NUMBERED:
            is_reg = any(REGULARISATION.fullmatch(part) for part in parts[:place])
            name = make_slug(("reg-" if is_reg else "") + parts[place])
            return Numbered(name, int(found[1]), found[2].strip(), is_reg)
    return None


class _Taking:
    """One upload on its way into the folders of a dataset."""

    def __init__(self, folder: Path, others: Sequence[Path], numbered: bool, report: Report) -> None:
        self.folder = folder
        self.numbered = numbered
        self.report = report
        self.places = {path: Origins(path) for path in dict.fromkeys((folder, *others))}
        self.broken: list[Source] = []

    def refuse(self, source: Source, why: str) -> None:
        """Name a file that is not taken."""
        self.report.refused.append((source.shown, why))
        if suffix_of(source.name) in PICTURES:
            self.broken.append(source)

    def read(self, item: Item) -> list[Sent]:
        """The text of a caption; none if it is in an encoding that nobody can tell."""
        name = item.source.shown
        try:
            return [Sent(item.source, tidy(decoded(item.data, name, None)))]
        except UserError as error:
            self.refuse(item.source, error.message.removeprefix(f"{name} "))
            return []

    def keep(self, item: Item) -> None:
        """Keep a picture, if it is one and is not there yet."""
        suffix = self._suffix(item)
        if suffix is None:
            return
        place = self._place(item.source)
        digest = digest_of(item.data)
        twin = _twin(place, item.source, digest)
        if twin is not None:
            self.report.again += not twin.slot.fresh
            twin.slot.fresh, twin.slot.source = True, item.source
            self.report.pictures.append(twin.path.name)
            return
        stems = {stem.lower() for stem in place.kept}
        stem = base = slug_of(item.source.name)
        number = 1
        # A caption without its picture would become that of the new one.
        while stem.lower() in stems or caption_bytes(place.folder, stem) is not None:
            number += 1
            stem = f"{base}-{number}"
        path = place.folder / f"{stem}{suffix}"
        _write(path, item.data)
        place.add(path, Slot(item.source), digest)
        self.report.pictures.append(path.name)

    def give(self, captions: Sequence[Sent]) -> None:
        """Write captions beside their pictures, and remember where all came from."""
        kept = {id(each.slot): each for place in self.places.values() for each in place.kept.values()}
        found = match([each.slot for each in kept.values()], captions, self.broken)
        for sent, slot in found.taken:
            path = kept[id(slot)].path
            write_caption(path.parent, path.stem, sent.text)
        self.report.captions = len({id(sent) for sent, _ in found.taken})
        self.report.refused += [(sent.source.shown, why) for sent, why in found.refused]
        self.report.notes += [*_notes(found), *self._numbers()]
        for place in self.places.values():
            if place.kept:
                place.save()

    def _place(self, source: Source) -> Origins:
        found = numbered_of(source) if self.numbered else None
        if found is None:
            return self.places[self.folder]
        path = self.folder.parent / found.name
        if path not in self.places:
            path.mkdir(exist_ok=True)
            self.places[path] = Origins(path)
        if found not in self.report.numbered:
            self.report.numbered.append(found)
        return self.places[path]

    def _numbers(self) -> Iterable[str]:
        for each in self.report.numbered:
            kind = "regularisation pictures, " if each.is_reg else ""
            yield f"Folder {each.name}: {kind}num_repeats {each.repeats}, class_tokens {each.tokens}."

    def _suffix(self, item: Item) -> str | None:
        try:
            with opened(BytesIO(item.data), item.source.name) as image:
                if image.width * image.height > PIXELS:
                    self.refuse(item.source, f"has more than {PIXELS // 1_000_000} megapixels")
                    return None
                if min(image.size) < MIN_SIDE:
                    self.refuse(item.source, f"is smaller than {MIN_SIDE} pixels")
                    return None
                # A file that is cut short opens well and breaks only here.
                image.load()
                return FORMATS[image.format or ""][0]
        except DECODE_ERRORS as error:
            known = isinstance(error, Image.UnidentifiedImageError)
            why = "is not a picture that can be read" if known else "is a broken picture"
            self.refuse(item.source, f"{why} ({reason(error)})")
            return None


def _twin(place: Origins, source: Source, digest: str) -> Kept | None:
    """The same picture of the same name, if it is there; of several that of the same folder."""
    found = [
        kept
        for kept in place.kept.values()
        if kept.slot.source.name.casefold() == source.name.casefold() or kept.path.stem == slug_of(source.name)
        if not kept.slot.fresh or kept.slot.source == source
        if place.digest(kept) == digest
    ]
    near = [kept for kept in found if kept.slot.source.folder == source.folder]
    return next(iter([*(kept for kept in near if kept.slot.source.origin == source.origin), *near, *found]), None)


def _notes(found: Matches) -> Iterable[str]:
    if found.replaced:
        yield f"{_count(found.replaced, 'caption')} replaced an earlier one of the same folder and name."
    if found.in_order:
        names = _some(found.in_order)
        yield f"Told apart by the order in which they came alone, so look at them: {names}."
    if found.apart:
        names = _some(found.apart)
        yield f"{_count(len(found.apart), 'caption')} came out of another folder than the picture: {names}."


def _some(captions: Sequence[Sent]) -> str:
    more = f" and {len(captions) - EXAMPLES} more" if len(captions) > EXAMPLES else ""
    return ", ".join(sent.source.shown for sent in captions[:EXAMPLES]) + more


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
