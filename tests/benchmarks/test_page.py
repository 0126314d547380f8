"""docs/performance.md: a benchmark writes its own section and nothing else."""

from pathlib import Path

from benchmarks.pairs.page import PAGE, has_section, with_section, write_section


def test_a_section_is_replaced_where_it_stands_and_all_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    for name in ("train cpu demo", "generate cpu demo", "train cuda suite"):
        write_section(name, f"## {name}\n\n\\1 of old figures", path)
    before = path.read_text(encoding="utf-8")
    write_section("train cpu demo", "## train cpu demo\n\nnew \\g<0> figures", path)
    after = path.read_text(encoding="utf-8")
    assert after == before.replace("## train cpu demo\n\n\\1 of old", "## train cpu demo\n\nnew \\g<0>")
    assert after.count("old figures") == 2


def test_a_new_section_has_its_place_by_name_and_needs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    assert not has_section("b", path)
    write_section("b", "second", path)
    write_section("a", "first", path)
    write_section("c", "third", path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Performance") and text.index("first") < text.index("second") < text.index("third")
    assert has_section("b", path) and not has_section("d", path)


def test_writing_the_same_again_changes_nothing() -> None:
    page = with_section("# Head\n", "a", "text")
    assert with_section(page, "a", "text") == page


def test_every_section_of_the_page_is_closed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("<!-- begin: ") == text.count("<!-- end: ") > 0
