"""CLIP's tokens from the bundled merges."""

from backend.families.base import FAMILIES, Model
from backend.families.tokenizer import clip_tokenizer, clip_vocabulary

CAT = [49406, 320, 1125, 539, 320, 2368, 267, 12066, 49407]


def test_known_caption(model: Model) -> None:
    ids = model.family.tokenize(model, ["a photo of a cat, masterpiece", ""])
    assert ids.shape == (2, 77)
    assert ids[0].tolist() == CAT + [49407] * 68
    assert ids[1].tolist() == [49406] + [49407] * 76


def test_long_captions_are_cut_and_still_end(model: Model) -> None:
    ids = FAMILIES["sd1"].tokenize(model, ["cat " * 200])[0].tolist()
    assert ids == [49406] + [2368] * 75 + [49407]


def test_vocabulary_is_whole() -> None:
    vocabulary = clip_vocabulary()
    assert len(vocabulary) == 49408
    assert sorted(vocabulary.values()) == list(range(49408))
    assert (vocabulary["!"], vocabulary["!</w>"], vocabulary["cat</w>"]) == (0, 256, 2368)


def test_case_spaces_and_unicode() -> None:
    tokenizer = clip_tokenizer()
    assert tokenizer("A  Photo\nof a CAT , masterpiece").input_ids == CAT
    assert tokenizer("naïve 猫 🐈").input_ids != tokenizer("naive cat").input_ids
    assert tokenizer.decode(tokenizer("naïve 猫 🐈").input_ids, skip_special_tokens=True) == "naïve 猫 🐈"


def test_padding_of_the_other_encoders() -> None:
    ids = clip_tokenizer("!")("cat", padding="max_length", max_length=6).input_ids
    assert ids == [49406, 2368, 49407, 0, 0, 0]
