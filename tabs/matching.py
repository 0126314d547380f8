"""Which caption of an upload belongs to which picture: decided by where the files stood and what they were called.

Never by what they are called here, and never against a match that is made already: a caption that could belong to
several pictures, or to one that has a caption, is given to none and named with the reason.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypeVar

from backend.picture_folder import CAPTION_EXTENSIONS, same_name, without_face
from backend.workspace import make_slug

LONELY = "a caption without a picture of its name"
ELSEWHERE = "no picture of its name in its folder, and those elsewhere are not surely meant"
SEVERAL = "several pictures have its name, and nothing says to which one it belongs"
RIVALS = "there are several captions of its name, and nothing says which one belongs to the picture"
HAS_ONE = "its picture has another caption already; change it in the page"
BROKEN = "its picture was not taken"


@dataclass(frozen=True)
class Source:
    """Where a file stood before it came here.

    Attributes:
        origin: name of the ZIP that it came in, "" if it came by itself.
        folder: within the ZIP, parts joined by "/".
        name: of the file. Names are in Unicode's composed form.
    """

    origin: str
    folder: str
    name: str

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def place(self) -> tuple[str, str]:
        """The folder that it stood in."""
        return self.origin, self.folder

    @property
    def shown(self) -> str:
        """As it was called by who sent it."""
        return f"{self.folder}/{self.name}" if self.folder else self.name


@dataclass(frozen=True, eq=False)
class Sent:
    """A caption that came."""

    source: Source
    text: str


@dataclass(eq=False)
class Slot:
    """A picture that is kept.

    Attributes:
        source: where it came from.
        fresh: it came with this upload, again or for the first time.
        text: its caption, None if it has none.
        caption: where that came from; None where that is unknown, or it was changed here since.
        given: it has got a caption of this upload.
        kept: its name here, without its ending, where nothing else is known of it.
    """

    source: Source
    fresh: bool = True
    text: str | None = None
    caption: Source | None = None
    given: bool = False
    kept: str = ""


@dataclass
class Matches:
    """What became of the captions of an upload.

    Attributes:
        taken: pairs of caption and picture; a caption may have several, such as two formats of one picture.
        refused: pairs of caption and reason.
        in_order: those that were told apart only by the order in which they came.
        apart: those that came out of another folder than their picture.
        replaced: how many are in place of an earlier one of the same folder and name.
    """

    taken: list[tuple[Sent, Slot]] = field(default_factory=list)
    refused: list[tuple[Sent, str]] = field(default_factory=list)
    in_order: list[Sent] = field(default_factory=list)
    apart: list[Sent] = field(default_factory=list)
    replaced: int = 0


def slug_of(name: str) -> str:
    """What a file of this name is called here, without its ending."""
    # Without a dot, so that what stands before the suffix is the same for everyone.
    return make_slug(PurePosixPath(name).stem.replace(".", "_"), "picture")


def match(slots: Sequence[Slot], captions: Sequence[Sent], broken: Iterable[Source] = ()) -> Matches:
    """Give captions to pictures.

    The folder and the name of a file decide. Within a folder a caption belongs to the picture of its name, whatever
    the letter case of endings; else `name.png.txt` to `name.png`, a name in other case, `name.txt` to
    `name_X_Y_W_H.png`. A caption out of a folder without pictures belongs to the one picture of its name elsewhere that
    has none. The same among the pictures of earlier uploads. The name that a picture has here counts only where nothing
    else is known of it.

    Args:
        slots: every picture of the dataset, those of this upload marked as fresh.
        captions: of this upload, in the order in which they came.
        broken: pictures of this upload that were not taken.
    """
    work = _Work(list(captions))
    fresh, stored = [slot for slot in slots if slot.fresh], [slot for slot in slots if not slot.fresh]
    gone = {key for source in broken for key in ((source.place, source.stem), (source.place, source.name))}
    for spelling in SPELLINGS:
        work.pair(fresh, lambda source: source.place, spelling)
        if spelling is SPELLINGS[0]:
            work.refuse(lambda sent: (sent.source.place, sent.source.stem) in gone, BROKEN)
    for place in (lambda source: source.place, lambda source: source.folder):
        for spelling in SPELLINGS:
            work.pair(stored, place, spelling)
    places = {source.place for source in (*(slot.source for slot in fresh), *broken)}
    # An earlier upload may have had the folder under another ZIP's name.
    places |= {sent.source.place for sent in captions if sent.source.folder in {slot.source.folder for slot in stored}}
    for group, within in ((fresh, True), (fresh, False), (stored, False)):
        for spelling in SPELLINGS[:2]:
            work.pair_apart(group, places, spelling, within)
    work.pair_kept(stored)
    named = {slot.source.stem.casefold() for slot in slots}
    work.refuse(lambda sent: sent.source.stem.casefold() in named, ELSEWHERE)
    work.refuse(lambda _: True, LONELY)
    return work.found


# Pairs of what a picture and what a caption is known by: they belong together where these are equal.
Spelling = tuple[Callable[[Source], Hashable | None], Callable[[Source], Hashable | None]]
SPELLINGS: tuple[Spelling, ...] = (
    (lambda picture: picture.stem, lambda caption: caption.stem),
    (lambda picture: picture.name.casefold(), lambda caption: caption.stem.casefold()),
    (lambda picture: same_name(picture.stem.casefold()), lambda caption: same_name(caption.stem.casefold())),
    (lambda picture: without_face(picture.stem), lambda caption: caption.stem),
)


T = TypeVar("T")


class _Work:
    """The captions that are left, and what became of the others."""

    def __init__(self, left: list[Sent]) -> None:
        self.left = left
        self.found = Matches()

    def refuse(self, which: Callable[[Sent], bool], reason: str) -> None:
        """Refuse those that are left and of which this is true."""
        refused = [sent for sent in self.left if which(sent)]
        self.found.refused += [(sent, reason) for sent in refused]
        self._drop(refused)

    def pair(self, slots: Sequence[Slot], place: Callable[[Source], Hashable], spelling: Spelling) -> None:
        """Give captions to the pictures of the same place."""
        for own, captions in self._groups(slots, place, spelling):
            self._settle([slot for slot in own if not slot.given], captions)

    def pair_apart(
        self, slots: Sequence[Slot], places: set[tuple[str, str]], spelling: Spelling, within_origin: bool
    ) -> None:
        """Give captions that stood in folders without pictures (`places` have some) to pictures elsewhere."""
        groups = self._groups(slots, lambda source: source.origin if within_origin else "", spelling)
        for named, rivals in groups:
            apart = [sent for sent in rivals if sent.source.place not in places]
            for sent in list(apart):
                if sent not in apart:
                    continue
                free = [slot for slot in named if not slot.given and _may_take(slot, sent)]
                near = _nearest(sent.source, free, lambda slot: slot.source)
                others = _nearest(near[0].source, apart, lambda other: other.source) if near else []
                if not near:
                    self._refuse([sent], HAS_ONE)
                elif len({(slot.source.place, slot.source.stem) for slot in near}) > 1 or len(near) != _names(near):
                    self._refuse([sent], SEVERAL)
                elif len(others) > 1 and len({other.text for other in others}) > 1:
                    self._refuse(others, RIVALS)
                    apart = [other for other in apart if other not in others]
                elif sent in others:
                    self._give(sent, near)
                    self.found.apart.append(sent)
                    apart.remove(sent)

    def pair_kept(self, slots: Sequence[Slot]) -> None:
        """Give captions to the pictures of which nothing is known but what they are called here."""
        kept = {slot.kept.casefold(): slot for slot in slots if slot.kept}
        for sent in list(self.left):
            stem = sent.source.stem
            slot = kept.get(stem.casefold()) or kept.get(slug_of(sent.source.name).casefold())
            if slot is not None and not slot.given:
                self._give(sent, [slot])

    def _groups(
        self, slots: Sequence[Slot], place: Callable[[Source], Hashable], spelling: Spelling
    ) -> list[tuple[list[Slot], list[Sent]]]:
        """The pictures and the captions of one place and one name each; both are there."""
        of_picture, of_caption = spelling
        named: dict[Hashable, list[Slot]] = defaultdict(list)
        captions: dict[Hashable, list[Sent]] = defaultdict(list)
        for slot in slots:
            known = of_picture(slot.source)
            if known is not None and not slot.given:
                named[place(slot.source), known].append(slot)
        for sent in self.left:
            captions[place(sent.source), of_caption(sent.source)].append(sent)
        return [(named[key], captions[key]) for key in captions if key in named]

    def _settle(self, slots: list[Slot], captions: list[Sent]) -> None:
        """The captions of a place and a name, and the pictures of that place and name."""
        if len(slots) == _names(slots):
            names = {sent.source.name for sent in captions}
            if len(names) < len(captions) and len({sent.text for sent in captions}) > 1:
                self._refuse(captions, RIVALS)
                return
            if len({slot.source.stem for slot in slots}) > 1 and not _faces(slots, captions):
                self._refuse(captions, SEVERAL)
                return
            first, *others = sorted(captions, key=_rank)
            self._give(first, slots)
            for sent in others:
                if sent.text == first.text:
                    self.found.taken.append((sent, slots[0]))
                    self._drop([sent])
                else:
                    self._refuse([sent], f"its picture has another caption, {first.source.shown}")
            return
        counts = {*Counter(slot.source.name for slot in slots).values(), len(captions)}
        names = {sent.source.name for sent in captions}
        if len(counts) > 1 or len(names) > 1 or any(slot.text is not None for slot in slots):
            self._refuse(captions, SEVERAL)
            return
        # Two folders were sent without their names, so that the order is all that is known.
        for name in dict.fromkeys(slot.source.name for slot in slots):
            for sent, slot in zip(captions, [slot for slot in slots if slot.source.name == name], strict=True):
                self._give(sent, [slot])
        self.found.in_order += captions

    def _give(self, sent: Sent, slots: Sequence[Slot]) -> None:
        """Give a caption to pictures, but to those that have another one."""
        free = [slot for slot in slots if _may_take(slot, sent)]
        if not free:
            self._refuse([sent], HAS_ONE)
            return
        for slot in free:
            self.found.replaced += slot.text not in (None, sent.text)
            slot.given, slot.text, slot.caption = True, sent.text, sent.source
            self.found.taken.append((sent, slot))
        self._drop([sent])

    def _refuse(self, captions: Sequence[Sent], reason: str) -> None:
        self.found.refused += [(sent, reason) for sent in captions]
        self._drop(captions)

    def _drop(self, captions: Sequence[Sent]) -> None:
        gone = {id(sent) for sent in captions}
        self.left = [sent for sent in self.left if id(sent) not in gone]


def _may_take(slot: Slot, sent: Sent) -> bool:
    """A picture takes a caption if it has none, the same one, or one of the same folder and name, now corrected."""
    if slot.text is None or slot.text == sent.text:
        return True
    known = slot.caption
    return known is not None and (known.folder, known.name) == (sent.source.folder, sent.source.name)


def _names(slots: Sequence[Slot]) -> int:
    """How many names they have."""
    return len({slot.source.name for slot in slots})


def _faces(slots: Sequence[Slot], captions: Sequence[Sent]) -> bool:
    """Whether they are pictures of faces, cut out of one, which share a caption."""
    return all(without_face(slot.source.stem) == captions[0].source.stem for slot in slots)


def _rank(sent: Sent) -> int:
    suffix = PurePosixPath(sent.source.name).suffix.lower()
    return CAPTION_EXTENSIONS.index(suffix) if suffix in CAPTION_EXTENSIONS else len(CAPTION_EXTENSIONS)


def _nearest(source: Source, others: Sequence[T], of: Callable[[T], Source]) -> list[T]:
    """Those whose folders have most of their last parts in common with a file's."""
    shared = [_shared(source.folder, of(other).folder) for other in others]
    most = max(shared, default=0)
    return [other for other, count in zip(others, shared, strict=True) if count == most]


def _shared(one: str, other: str) -> int:
    count = 0
    for left, right in zip(reversed(one.split("/")), reversed(other.split("/")), strict=False):
        if left != right:
            break
        count += 1
    return count
