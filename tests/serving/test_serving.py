"""Who has to log in, by flags and environment."""

import pytest

from backend.errors import UserError
from backend.serving import greeting, make_plan, parse_flags


def plan(*argv, **environment):
    return make_plan(parse_flags(argv), environment)


@pytest.mark.parametrize("argv", [[], ["--listen", "127.0.0.1"], ["--listen", "::1"], ["--listen", "localhost"],
                                  ["--allowed_hosts", "localhost"]])  # fmt: skip
def test_on_this_machine_nobody_has_to_log_in(argv):
    assert plan(*argv).account is None


@pytest.mark.parametrize(
    "argv",
    [["--listen"], ["--listen", "0.0.0.0"], ["--listen", "::"], ["--listen", "10.0.0.7"], ["--share"],
     ["--root_path", "/loom"], ["--allowed_hosts", "box.example"], ["--allowed_hosts", "*"]],
)  # fmt: skip
def test_reachable_from_elsewhere_there_is_always_a_password_shown_once(argv):
    first, second = plan(*argv), plan(*argv)
    assert first.generated and len(first.account.password) >= 16
    assert first.account.password != second.account.password
    assert first.account.password in greeting(first) and first.account.username in greeting(first)
    assert first.account.password not in repr(first)


def test_a_given_password_is_used_and_never_shown():
    flag = plan("--listen", "--password", "correct horse", "--username", "ada")
    assert (flag.account.username, flag.account.password, flag.generated) == ("ada", "correct horse", False)
    named = plan("--listen", LORALOOM_PASSWORD="correct horse", LORALOOM_USERNAME="bob")
    assert (named.account.username, named.account.password, named.generated) == ("bob", "correct horse", False)
    assert plan("--password", "from a flag", LORALOOM_PASSWORD="correct horse").account.password == "from a flag"
    assert plan(LORALOOM_PASSWORD="correct horse").account.password == "correct horse"
    assert "correct horse" not in greeting(flag) + greeting(named) + repr(flag)


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["--password", ""], "password"),
        (["--password", "short"], "password"),
        (["--username", "ada"], "username"),
        (["--username", " ", "--listen"], "username"),
        (["--allowed_hosts", "https://box.example/"], "allowed_hosts"),
        (["--allowed_hosts", "box.example:7860"], "allowed_hosts"),
        (["--root_path", "loom"], "root_path"),
    ],
)
def test_mistakes_name_the_flag(argv, field):
    with pytest.raises(UserError) as caught:
        plan(*argv)
    assert caught.value.field == field


def test_an_empty_variable_is_no_password():
    assert plan("--listen", LORALOOM_PASSWORD="").generated
    assert plan(LORALOOM_PASSWORD="").account is None


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "7860.0"])
def test_a_port_is_a_port(port, capsys):
    with pytest.raises(SystemExit):
        parse_flags(["--server_port", port])
    assert "is not a port" in capsys.readouterr().err or port == "-1"


def test_addresses_and_hosts_are_brought_into_form():
    assert plan("--listen", "::1").address == "[::1]"
    assert plan("--listen", "[::]").address == "[::]"
    assert plan("--allowed_hosts", "A.example,b.example", "*.c.example").hosts == (
        "a.example",
        "b.example",
        "*.c.example",
    )
    assert plan("--root_path", "/loom/").root_path == "/loom"
    assert greeting(plan()) == "LoRA Loom runs on http://127.0.0.1:7860"
