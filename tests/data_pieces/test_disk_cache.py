"""The cache on the disk: never out of date, made anew where it is damaged, and nothing is done twice."""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from backend.config.dataset import DatasetConfig
from backend.data import pictures as pictures_module
from backend.data import store as store_module
from backend.data.cache import DiskStore, LatentCache, cache_latents
from backend.data.dataset import TrainingSet
from backend.data.split import Split
from backend.data.store import FOLDER, INDEX, CacheFolder, Caches, identity
from backend.errors import UserError

TOML = """
[[datasets]]
resolution = 64
  [[datasets.subsets]]
  image_dir = "train"
"""
OPTION = "cache_latents_to_disk"


class Start:
    """One start of a run: scan, then cache with an encoder that pools pixels and counts them."""

    def __init__(self, toml: str = TOML, encoder: str = "vae", trust: bool = False) -> None:
        self.encoded = 0
        self.caches = Caches(OPTION, trust)
        self.set = TrainingSet.scan(DatasetConfig.loads(toml), self.caches)
        self.encoder = encoder

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.encoded += len(pixels)
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def cache(self, **options: object) -> LatentCache:
        return cache_latents(self.set, self.encode, store=DiskStore(self.caches, self.encoder), **options)


def start(*arguments: object, **options: object) -> tuple[LatentCache, Start]:
    begun = Start(*arguments, **options)
    return begun.cache(), begun


@pytest.fixture
def train(draw, tmp_path, monkeypatch) -> Path:
    """The folder of five pictures."""
    monkeypatch.chdir(tmp_path)
    for i in range(5):
        draw(f"train/{i}.png", (64, 64), "a", value=20 * i)
    return tmp_path / "train"


@pytest.fixture
def old_pictures(monkeypatch) -> None:
    """Stamps are believed however young they are."""
    monkeypatch.setattr(store_module, "YOUNG", -1e9)


def expected(picture) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(pictures_module.load_pixels(picture)[None], 8)[0]


def files(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER / "latents").iterdir())


def test_a_second_start_encodes_nothing_and_gives_the_same(train):
    first, one = start()
    second, two = start()
    assert (one.encoded, two.encoded) == (5, 0) and len(second) == 5
    for picture in two.set.pictures:
        assert torch.equal(second.get(picture), first.get(picture)) and torch.equal(
            second.get(picture), expected(picture)
        )


def test_a_second_start_decodes_nothing(train, old_pictures, monkeypatch):
    start()
    monkeypatch.setattr(pictures_module, "_upright_size", None)
    monkeypatch.setattr(pictures_module, "_hash", None)
    assert start()[1].encoded == 0


def test_a_second_start_that_holds_pictures_out_reads_none_of_them(train, old_pictures, monkeypatch):
    config, split = DatasetConfig.loads(TOML), Split(0.4, 7)
    expected = TrainingSet.scan(config, split=split).validation
    assert len(expected) == 2
    TrainingSet.scan(config, Caches(OPTION), split)
    monkeypatch.setattr("backend.data.split._content", None)
    again = TrainingSet.scan(config, Caches(OPTION), split).validation
    assert [picture.path for picture in again] == [picture.path for picture in expected]


def test_threads_that_open_a_folder_together_share_it(train, monkeypatch):
    caches = Caches(OPTION)
    opened = []

    def slow(folder: Path, *_options: object) -> object:
        time.sleep(0.05)
        opened.append(folder)
        return object()

    monkeypatch.setattr(store_module, "CacheFolder", slow)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(caches.beside, [train / f"{number}.png" for number in range(4)]))
    assert len(opened) == 1 and len(set(map(id, found))) == 1


def test_without_it_nothing_is_written(train, tmp_path):
    found = TrainingSet.scan(DatasetConfig.loads(TOML))
    cache_latents(found, Start.encode.__get__(type("Counter", (), {"encoded": 0})()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train"]
    assert all(path.suffix in (".png", ".txt") for path in train.iterdir())


@pytest.mark.parametrize("old", [True, False])
def test_an_edited_picture_of_the_same_size_and_time_is_encoded_anew(draw, train, old, monkeypatch):
    """Name, bytes and modification time are as before; only the pixels are not."""
    if old:
        monkeypatch.setattr(store_module, "YOUNG", -1e9)
    path = draw("train/3.bmp", (64, 64), "a", value=10)
    before = path.stat()
    first, _ = start()
    time.sleep(0.02)  # a tick of the file system's clock
    draw("train/3.bmp", (64, 64), "a", value=200)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second, two = start()
    assert two.encoded == 1
    (picture,) = [picture for picture in two.set.pictures if picture.path.suffix == ".bmp"]
    assert torch.equal(second.get(picture), expected(picture))
    assert not torch.equal(second.get(picture), first.get(next(p for p in two.set.pictures if p.path.name == "4.png")))


def test_a_picture_replaced_by_another_file_is_noticed(draw, train, old_pictures):
    path = draw("train/3.bmp", (64, 64), "a", value=10)
    before = path.stat()
    start()
    other = draw("other.bmp", (64, 64), value=200)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)
    assert start()[1].encoded == 1


def test_young_pictures_are_read_again(train):
    """Within two seconds a change may leave no trace in the times of the file."""
    start()
    folder = CacheFolder(train, OPTION)
    assert folder.facts(train / "0.png", (train / "0.png").stat()) is None
    now = time.time() + 3600
    status = (train / "0.png").stat()
    known = pictures_module.Facts((64, 64), "hash")
    folder.learn(train / "0.png", status, known, now)
    assert folder.facts(train / "0.png", status) == known


def test_another_vae_encodes_all_anew_and_both_are_kept(train):
    start()
    assert start(encoder="other")[1].encoded == 5
    assert start()[1].encoded == start(encoder="other")[1].encoded == 0


@pytest.mark.parametrize(
    "change",
    [
        ("resolution = 64", "resolution = 32"),
        ("resolution = 64", "resolution = [64, 32]"),
        ('"train"', '"train"\nalpha_mask = true'),
        ("resolution = 64", 'resolution = 64\nresize_interpolation = "nearest"'),
    ],
)
def test_what_changes_the_latents_changes_their_names(train, change):
    start()
    assert start(TOML.replace(*change))[1].encoded == 5
    assert start()[1].encoded == 0


def test_another_dtype_is_another_latent(train):
    start()
    begun = Start()
    cache = begun.cache(dtype=torch.float16)
    assert begun.encoded == 5 and cache.get(begun.set.pictures[0]).dtype == torch.float16


def test_flip_aug_that_comes_later_encodes_the_mirrored_ones_only(train):
    start()
    cache, begun = start(TOML.replace('"train"', '"train"\nflip_aug = true'))
    assert begun.encoded == 5 and len(cache) == 10
    for picture in begun.set.pictures:
        assert torch.equal(cache.get(picture, True), expected(picture).flip(-1))


def test_a_changed_mask_is_another_entry(draw, train):
    for i in range(5):
        draw(f"masks/{i}.png", (64, 64), value=0)
    toml = TOML.replace('"train"', '"train"\nconditioning_data_dir = "masks"')
    first, one = start(toml)
    assert one.encoded == 5
    draw("masks/2.png", (64, 64), value=255)
    second, two = start(toml)
    assert two.encoded == 1
    picture = next(picture for picture in two.set.pictures if picture.path.name == "2.png")
    assert second.entry(picture).mask.min() == 1
    unchanged = next(picture for picture in two.set.pictures if picture.path.name == "1.png")
    assert second.entry(unchanged).mask[:, :, :4].max() == 0 and second.entry(unchanged).mask[:, :, 4:].min() == 1


def test_same_stem_different_extension_do_not_share(draw, train):
    draw("train/3.bmp", (64, 64), "a", value=200)
    for cache, begun in (start(), start()):
        for picture in begun.set.pictures:
            assert torch.equal(cache.get(picture), expected(picture))


def test_a_renamed_picture_needs_no_encoding(train):
    start()
    (train / "3.png").rename(train / "new.png")
    assert start()[1].encoded == 0


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped_bit(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize("damage", [cut, flipped_bit, lambda data: b"", lambda data: b"\xff" * len(data)])
@pytest.mark.parametrize("trust", [False, True])
def test_damaged_files_are_made_anew(train, damage: Callable[[bytes], bytes], trust):
    start()
    path = files(train)[2]
    path.write_bytes(damage(path.read_bytes()))
    cache, begun = start(trust=trust)
    assert begun.encoded == 1
    assert all(torch.equal(cache.get(picture), expected(picture)) for picture in begun.set.pictures)


def test_skip_cache_check_believes_size_and_time_and_reads_nothing(train, monkeypatch):
    start()
    path = files(train)[2]
    before = path.stat()
    path.write_bytes(flipped_bit(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with monkeypatch.context() as patch:
        patch.setattr(CacheFolder, "_verified", None)
        assert start(trust=True)[1].encoded == 0
    assert start()[1].encoded == 1


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"version": 1, "pictures": 5, "files": {"a": 1}}', '{"version": 1, "pictures": {"x": [1]}}'),
        "[" * 100_000,
    ],
)
def test_a_damaged_index_costs_time_only(train, text, old_pictures):
    start()
    index = train / FOLDER / INDEX
    whole = json.loads(index.read_text())
    index.write_text(text.replace("x", str(train / "0.png")))
    cache, begun = start()
    assert begun.encoded == 0 and len(cache) == 5
    mended = json.loads(index.read_text())
    assert whole["pictures"] == mended["pictures"] and whole["files"].items() <= mended["files"].items()


def test_two_runs_at_the_same_time_keep_each_others_work(draw, train, old_pictures):
    """Both look before either writes; then each has what both found out."""
    one, two = Start(), Start(TOML.replace("64", "32"))
    two_cache, one_cache = two.cache(), one.cache()
    for cache, begun in ((one_cache, one), (two_cache, two)):
        assert begun.encoded == 5
        assert all(torch.equal(cache.get(picture), expected(picture)) for picture in begun.set.pictures)
    assert len(CacheFolder(train, OPTION)._files) == 10
    assert start(trust=True)[1].encoded == start(TOML.replace("64", "32"), trust=True)[1].encoded == 0
    assert not list(train.rglob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_encoded(train):
    (train / FOLDER).write_text("in the way")
    with pytest.raises(UserError, match=r"cache_latents_to_disk: cannot write to .*use cache_latents alone") as caught:
        Start()
    assert "\n" not in str(caught.value)


def test_a_disk_that_refuses_later_is_told_too(train, monkeypatch):
    begun = Start()

    def refuse(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "replacing", refuse)
    with pytest.raises(UserError, match="No space left on device.*: make room"):
        begun.cache()


def test_a_whole_cache_on_a_read_only_disk_serves(train, monkeypatch, old_pictures):
    start()
    (train / FOLDER / INDEX).unlink()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(store_module, "replacing", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert start()[1].encoded == 0


def test_a_file_that_goes_during_training_is_one_clear_line(train):
    cache, begun = start()
    for path in files(train):
        path.unlink()
    with pytest.raises(UserError, match="cache_latents_to_disk: .*is gone or damaged: start again"):
        cache.get(begun.set.pictures[0])


def test_a_picture_that_changes_between_scan_and_encoding_is_not_kept_under_its_old_name(draw, train):
    begun = Start()
    draw("train/2.png", (64, 64), "a", value=222)
    with pytest.raises(UserError, match=r"2\.png was changed while it was being read: start again"):
        begun.cache()
    cache, again = start()
    assert all(torch.equal(cache.get(picture), expected(picture)) for picture in again.set.pictures)


@pytest.mark.parametrize("to_disk", [False, True])
def test_latents_that_are_not_finite_name_their_picture(train, to_disk):
    begun = Start()
    store = DiskStore(begun.caches, "vae") if to_disk else None

    bad = expected(begun.set.pictures[3]).min()

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        latents = begun.encode(pixels)
        return torch.where(latents == bad, float("nan"), latents)

    with pytest.raises(UserError, match=r"3\.png: the VAE makes numbers that are not finite of it; .* vae"):
        cache_latents(begun.set, encode, 5, store=store)
    if to_disk:
        assert start()[1].encoded == 2  # that one, and the one after it


def test_latents_on_the_disk_take_no_memory(train):
    cache, _ = start()
    assert cache._entries == {} and len(cache) == 5


def test_progress_counts_what_was_there_as_done(train, draw):
    start()
    draw("train/new.png", (64, 64), "a", value=250)
    seen = []
    Start().cache(progress=lambda done, total: seen.append((done, total)))
    Start().cache(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(6, 6), (6, 6)]


def test_the_identity_of_a_module_is_all_of_its_numbers_and_settings():
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    plain = identity([make(0)], {"scale": 1.0, "_name": "here", "format_version": 3})
    assert plain == identity([make(0)], {"scale": 1.0, "_name": "there"})
    changed = make(0)
    with torch.no_grad():
        changed[0].bias[3] += 1e-7 + changed[0].bias[3].abs() * 1e-6
    others = [
        identity([make(1)], {"scale": 1.0}),
        identity([make(0)], {"scale": 2.0}),
        identity([make(0).half()], {"scale": 1.0}),
        identity([changed], {"scale": 1.0}),
        identity([make(0), make(0)], {"scale": 1.0}),
    ]
    assert len({plain, *others}) == 6
