"""Words that a model's folder has added to the vocabulary: read, found in texts as transformers finds them, kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from backend.errors import UserError
from backend.families.added_tokens import OWN_TOKENS, AddedToken, from_metadata, read_added_tokens, to_metadata
from backend.families.base import (
    Checkpoint,
    checkpoint_of,
    load_model,
    read_checkpoint,
    save_diffusers,
    write_folder,
    write_single_file,
)
from backend.families.build import random_model
from backend.families.clip_text import encode_texts
from backend.families.folder import _write_tokenizer
from backend.families.tokenizer import END, added_to, clip_tokenizer, clip_vocabulary, text_tokens
from backend.tools.convert import convert
from backend.train.text import encoder_identity

CAT = OWN_TOKENS
EMBEDDING = "embeddings.token_embedding.weight"


def grown(family: str, added: dict[str, dict[int, AddedToken]], rows: int = 3) -> Checkpoint:
    """A random model with vectors for `rows` more words."""
    checkpoint = checkpoint_of(random_model(5, family=family))
    for name, part in checkpoint.parts.items():
        if name.startswith("text_encoder"):
            table = part.tensors[EMBEDDING]
            more = torch.randn(rows, table.shape[1], generator=torch.Generator().manual_seed(1)) * 5
            part.tensors[EMBEDDING] = torch.cat([table, more.to(table)])
            part.config["vocab_size"] = len(table) + rows
    checkpoint.added_tokens = added
    return checkpoint


def words(*contents: str) -> dict[int, AddedToken]:
    return {CAT + index: AddedToken(content) for index, content in enumerate(contents)}


def write(folder: Path, name: str, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


FULL = {"content": "<cat>", "single_word": True, "lstrip": True, "rstrip": False, "normalized": False, "special": True}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("added_tokens.json", {"<cat>": CAT, "<d>": CAT + 4}, {CAT: AddedToken("<cat>"), CAT + 4: AddedToken("<d>")}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(CAT): FULL}}, {CAT: AddedToken(**FULL)}),
        ("tokenizer.json", {"added_tokens": [FULL | {"id": CAT}]}, {CAT: AddedToken(**FULL)}),
        ("tokenizer.json", {"model": {}}, {}),
        (
            "special_tokens_map.json",
            {"additional_special_tokens": ["<cat>", {"content": "<dog>"}, END], "bos_token": "x"},
            {
                CAT: AddedToken("<cat>", normalized=False, special=True),
                CAT + 1: AddedToken("<dog>", normalized=False, special=True),
            },
        ),
        # What CLIP's own vocabulary has is nothing added.
        ("tokenizer_config.json", {"added_tokens_decoder": {"49407": {"content": END}}}, {}),
        ("added_tokens.json", {END: 49407, "": CAT}, {}),
    ],
)
def test_every_file_that_tells_of_tokens_is_read(tmp_path, name, content, expected) -> None:
    assert read_added_tokens(write(tmp_path, name, content), clip_vocabulary()) == expected


def test_the_files_are_read_together_and_the_first_one_counts(tmp_path) -> None:
    write(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": {str(CAT): FULL}})
    write(tmp_path, "added_tokens.json", {"<cat>": CAT, "<dog>": CAT + 1, "<other>": CAT})
    write(tmp_path, "special_tokens_map.json", {"additional_special_tokens": ["<dog>", "<fox>"]})
    found = read_added_tokens(tmp_path)
    assert [(number, token.content) for number, token in found.items()] == [
        (CAT, "<cat>"),
        (CAT + 1, "<dog>"),
        (CAT + 2, "<fox>"),
    ]
    assert found[CAT] == AddedToken(**FULL) and read_added_tokens(tmp_path / "gone") == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", "{"),
        ("added_tokens.json", "[1]"),
        ("added_tokens.json", {"<cat>": "many"}),
        ("added_tokens.json", {"<cat>": True}),
        ("added_tokens.json", {"<cat>": -1}),
        ("added_tokens.json", {"<cat>": 1.5}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(CAT): 7}}),
        ("tokenizer.json", {"added_tokens": {"a": 1}}),
        ("tokenizer.json", {"added_tokens": ["a"]}),
        ("added_tokens.json", "[" * 100000),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content) -> None:
    with pytest.raises(UserError, match=name):
        read_added_tokens(write(tmp_path, name, content))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just(FULL),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["added_tokens", "added_tokens_decoder", "additional_special_tokens", "content", "id"])
            | st.text(max_size=5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
NAMES = ("added_tokens.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_any_json_is_read_or_one_line_that_names_its_file(tmp_path_factory, files) -> None:
    folder = tmp_path_factory.mktemp("t")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    try:
        found = read_added_tokens(folder)
    except UserError as error:
        assert any(name in str(error) for name in files) and "\n" not in str(error)
    else:
        assert all(number >= OWN_TOKENS and token.content for number, token in found.items())
        assert len({token.content for token in found.values()}) == len(found)
        assert from_metadata(to_metadata({"tokenizer": found}), "f") == ({"tokenizer": found} if found else {})


POOL = (
    AddedToken("<cat>"),
    AddedToken("<CAT>", normalized=False),
    AddedToken("sks", single_word=True),
    AddedToken("ohwx man"),
    AddedToken("**x"),
    AddedToken("<é>", lstrip=True),
    AddedToken("[V]", rstrip=True, normalized=False, special=True),
    AddedToken("猫", lstrip=True, rstrip=True),
)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Our tokenizer with added tokens, and the one that transformers reads from a folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    added = {CAT + index: token for index, token in enumerate(POOL)}
    _write_tokenizer(folder, END, added)
    return clip_tokenizer(END, added), CLIPTokenizer.from_pretrained(folder), added


PIECES = st.sampled_from([token.content for token in POOL] + [" ", "a", "photo", "S", ",", "'s", "<", "\n", "7", END])


@settings(deadline=None)
@given(st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join))
def test_tokens_are_those_of_transformers(both, text) -> None:
    ours, theirs, added = both
    assert text_tokens(ours, [text])[0] == theirs(text, add_special_tokens=False).input_ids
    assert added_to(ours) == added


def test_numbers_may_have_gaps() -> None:
    tokenizer = clip_tokenizer(END, {CAT + 7: AddedToken("<cat>"), CAT + 2: AddedToken("<dog>")})
    assert text_tokens(tokenizer, ["<dog><cat> sun"]) == [[CAT + 2, CAT + 7, *text_tokens(tokenizer, ["sun"])[0]]]


def test_a_word_that_the_vocabulary_has_itself_has_the_number_of_the_folder() -> None:
    tokenizer = clip_tokenizer(END, {CAT: AddedToken("*")})
    (photo,) = text_tokens(clip_tokenizer(), ["photo of"])
    assert text_tokens(tokenizer, ["photo of *"]) == [[*photo, CAT]]


def test_a_word_of_several_vectors_stands_for_all_of_them() -> None:
    tokenizer = clip_tokenizer(END, words("<cat>", "<cat>_1", "<cat>_2", "<dog>"))
    (sun,) = text_tokens(tokenizer, ["sun"])
    rows = text_tokens(tokenizer, ["<cat> sun <dog>", "<cat> <cat>_1 <cat>_2 sun", "<cat>_1"])
    assert rows == [[CAT, CAT + 1, CAT + 2, *sun, CAT + 3], [CAT, CAT + 1, CAT + 2, *sun], [CAT + 1]]
    assert text_tokens(tokenizer, ["sun sun <cat>", ""], most=3) == [[*sun, *sun, CAT], []]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_folders_words_are_known_and_change_what_is_encoded(tmp_path, family) -> None:
    names = ["tokenizer", "tokenizer_2"] if family == "sdxl" else ["tokenizer"]
    checkpoint = grown(family, {name: words("<cat>", "<dog>") for name in names})
    write_folder(checkpoint, tmp_path / "known")
    write_folder(replace(checkpoint, added_tokens={}), tmp_path / "plain")
    known, plain = load_model(tmp_path / "known"), load_model(tmp_path / "plain")
    assert known.notes == plain.notes
    texts = ["a <cat>, sun", "a red sun"]
    ids = known.family.tokenize(known, texts)
    assert (ids[0] == CAT).sum() == len(names) and (ids[1] < CAT).all()
    ours, theirs = encode_texts(known, texts), encode_texts(plain, texts)
    assert not torch.allclose(ours.hidden[0], theirs.hidden[0])
    torch.testing.assert_close(ours.hidden[1], theirs.hidden[1])
    if ours.pooled is not None:
        # Taken at the end of the text, which is not the highest number in it any more.
        end = int((ids[0, 1] == 49407).nonzero()[0])
        encoder = known.text_encoders[1]
        states = encoder(ids[:1, 1], output_hidden_states=True)
        expected = encoder.text_projection(states.last_hidden_state[:, end])
        torch.testing.assert_close(ours.pooled[:1], expected)
    device = torch.device("cpu")
    assert encoder_identity(known, device) != encoder_identity(plain, device)
    save_diffusers(known, tmp_path / "again", tokenizer=False)
    assert read_checkpoint(tmp_path / "again").added_tokens == checkpoint.added_tokens


def test_each_tokenizer_has_its_own_words(tmp_path) -> None:
    write_folder(grown("sdxl", {"tokenizer_2": words("<cat>")}), tmp_path / "m")
    model = load_model(tmp_path / "m")
    ids = model.family.tokenize(model, ["<cat>"])
    assert (ids[0, 0] < CAT).all() and (ids[0, 1] == CAT).sum() == 1


def test_words_without_vectors_are_told_and_plain_text(tmp_path) -> None:
    folder = tmp_path / "m"
    write_folder(grown("sd1", {"tokenizer": words("<cat>")}, rows=1), folder)
    write(folder / "tokenizer", "added_tokens.json", {"<cat>": CAT, "<dog>": CAT + 1})
    model = load_model(folder)
    assert any("1 added tokens: <dog>: the text encoder has no vectors" in note for note in model.notes)
    ids = model.family.tokenize(model, ["<cat> <dog>"])
    assert (ids == CAT).sum() == 1 and (ids <= CAT).all()
    assert encode_texts(model, ["<cat> <dog>"]).hidden.isfinite().all()


def test_more_vectors_than_words_are_fine(tmp_path) -> None:
    write_folder(grown("sd1", {}), tmp_path / "m", tokenizer=False)
    model = load_model(tmp_path / "m")
    assert encode_texts(model, ["a <cat>"]).hidden.isfinite().all() and not model.notes


def test_a_single_file_tells_of_the_words_and_a_ckpt_says_what_is_lost(tmp_path, capsys) -> None:
    folder, added = tmp_path / "m", {"tokenizer": words("<cat>", "<dog>")}
    write_folder(grown("sd1", added), folder)
    convert(str(folder), tmp_path / "m.safetensors")
    assert "Warning: 2 added tokens: <cat>, <dog>; " in capsys.readouterr().out
    assert load_model(tmp_path / "m.safetensors").family.name == "sd1"
    assert read_checkpoint(tmp_path / "m.safetensors").added_tokens == added
    convert(str(tmp_path / "m.safetensors"), tmp_path / "again")
    assert read_checkpoint(tmp_path / "again").added_tokens == added
    convert(str(folder), tmp_path / "m.ckpt")
    assert "2 added tokens: <cat>, <dog>; they are lost" in capsys.readouterr().out


def test_a_single_file_whose_words_have_no_vectors_is_read(tmp_path) -> None:
    checkpoint = replace(checkpoint_of(random_model(5)), added_tokens={"tokenizer": words("<cat>")})
    write_single_file(checkpoint, tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors")
    assert "no vectors" in model.notes[-1] and added_to(model.tokenizers[0]) == {}
