"""Captions whose end does not count are told once, by number and with the longest."""

from backend.families.tokenizer import clip_tokenizer
from backend.train.caption_notes import caption_notes, count_tokens


def test_captions_that_are_cut_are_told_once_with_the_longest(dataset, tmp_path, run_of, capsys) -> None:
    path = dataset()
    (tmp_path / "pictures" / "01.txt").write_text("cat " * 80, encoding="utf-8")
    (tmp_path / "pictures" / "02.txt").write_text("dog " * 90 + "<lora:x:1>", encoding="utf-8")
    run = run_of(dataset_config=str(path))
    told = [line for line in capsys.readouterr().out.splitlines() if "longer than" in line or "<lora:" in line]
    assert len(told) == 2 and told[0].startswith("Warning: 2 of 4 captions are longer than the 75 tokens that count")
    assert "02.png" in told[0] and "set max_token_length to 150" in told[0] and "02.png" in told[1]
    run.model.max_token_length = 150
    assert [note for note in caption_notes(run.model, run.training_set) if "longer" in note] == []


def test_tokens_are_counted_as_they_are_trained() -> None:
    tokenizers = [clip_tokenizer(), clip_tokenizer("!")]
    assert count_tokens(tokenizers, ["cat " * 80, "", "(cat:1.3)"]) == [80, 0, 7]
    assert count_tokens(tokenizers, ["(cat:1.3)"], weighted=True) == [1]
