"""The guard alone, around an app that answers everything."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from backend.hosts import host_name, is_loopback
from backend.logins import ALL_FAILURES, BURST, FAILURES, Account, Logins
from tests.serving.client import Client

PAGE = b"<html><script>window.a = 1</script><script src='x.js'></script><img onerror='steal()'></html>"


@pytest.fixture
def open_door():
    return Client()


@pytest.fixture
def locked():
    return Client(account=Account("loom", "correct horse"))


# Host


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:7860", "127.0.0.1:7860", "127.9.9.9", "[::1]:7860", "LOCALHOST"]
)
def test_loopback_names_are_served(open_door, host):
    assert open_door.ask(host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.0.1",
             "0.0.0.0", "", None, "localhost@evil.example", "[::2]"],
)  # fmt: skip
def test_other_names_are_not_so_a_rebound_name_reaches_nothing(open_door, host):
    assert open_door.ask(host=host).status == 400 and open_door.inner.calls == []


def test_with_a_password_any_host_is_served_unless_hosts_are_listed(locked):
    cookie = locked.log_in(host="abc-7860.proxy.example").cookie
    assert locked.ask(host="whatever.example", cookie=cookie).status == 200
    listed = Client(account=Account("loom", "correct horse"), hosts=("box.example", "*.proxy.example"))
    assert listed.ask("/login", host="box.example").status == 200
    assert listed.ask("/login", host="a.proxy.example:443").status == 200
    assert listed.ask("/login", host="localhost").status == 200
    assert listed.ask("/login", host="proxy.example").status == 400
    assert listed.ask("/login", host="box.example.evil.example").status == 400


# Origin


@pytest.mark.parametrize(
    ("host", "origin"),
    [("localhost:7860", "http://localhost:7860"), ("LOCALHOST:7860", "http://localhost:7860"), ("127.0.0.1", "http://127.0.0.1"),
     ("localhost", "https://localhost:443"), ("localhost:80", "http://localhost")],
)  # fmt: skip
def test_our_own_pages_may_call(open_door, host, origin):
    assert open_door.ask(host=host, origin=origin).status == 200


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "", "http://localhost:7861", "http://127.0.0.1:7860", "http://localhost:7860.evil.example",
     "http://localhost:7860@evil.example", "file://", "chrome-extension://localhost:7860", "localhost:7860", "http://[bad"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_others_may_not(open_door, method, origin):
    assert open_door.ask("/gradio_api/upload", method, origin=origin).status == 403 and open_door.inner.calls == []


def test_listed_hosts_may_call():
    client = Client(account=Account("loom", "correct horse"), hosts=("box.example",))
    assert client.log_in(origin="https://box.example").status == 200
    assert client.log_in(origin="https://evil.example").status == 403


def test_websockets_are_checked_too(open_door, locked):
    assert (
        open_door.ask("/ws", kind="websocket", origin="http://localhost:7860").messages[0]["type"] == "websocket.accept"
    )
    for client, headers in (
        (open_door, {"origin": "https://evil.example"}),
        (locked, {}),
        (open_door, {"host": "evil.example"}),
    ):
        assert client.ask("/x", kind="websocket", **headers).messages == [{"type": "websocket.close", "code": 1008}]


# Login


@pytest.mark.parametrize(
    "path", ["/config", "/gradio_api/startup-events", "/gradio_api/app_id", "/theme.css", "/assets/index.js",
             "/login/../config", "/loginx", "//", "/gradio_api/file=/etc/passwd", "/favicon.ico"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
def test_without_a_login_nothing_is_answered(locked, path, method):
    for cookie in ("", "loraloom_7860=", "loraloom_7860=guess", "a=b; c"):
        assert locked.ask(path, method, cookie=cookie).status == 401
    assert locked.inner.calls == []


def test_the_page_leads_to_the_login_and_the_login_to_the_page(locked):
    answer = locked.ask("/", accept="text/html")
    assert (answer.status, answer.headers["location"]) == (303, "login")
    form = locked.ask("/login", accept="text/html")
    assert form.status == 200 and b'name="password"' in form.body and b"<script" not in form.body
    answer = locked.log_in(accept="text/html")
    assert (answer.status, answer.headers["location"]) == (303, "./")
    assert locked.ask("/", cookie=answer.cookie).status == 200 and locked.inner.calls == ["/"]
    assert locked.ask("/login", cookie=f"other=1; {answer.cookie}").status == 303


def test_a_script_logs_in_as_gradios_client_does(locked):
    answer = locked.log_in()
    assert answer.status == 200 and json.loads(answer.body) == {"success": True}
    wrong = locked.log_in(password="wrong")
    assert wrong.status == 400 and "set-cookie" not in wrong.headers


@pytest.mark.parametrize(
    ("username", "password"),
    [("loom", ""), ("loom", "correct horse "), ("", "correct horse"), ("Loom", "correct horse")],
)
def test_a_wrong_name_or_password_does_not_open(locked, username, password):
    answer = locked.log_in(username, password)
    assert answer.status == 400 and "set-cookie" not in answer.headers


def test_the_cookie_is_kept_from_scripts_other_sites_and_plain_http(locked):
    flags = locked.log_in().headers["set-cookie"].split("; ")
    assert "HttpOnly" in flags and "SameSite=Lax" in flags and "Secure" not in flags
    assert "Secure" in locked.log_in(x_forwarded_proto="https").headers["set-cookie"].split("; ")


def test_after_logging_out_the_cookie_is_worth_nothing(locked):
    cookie, other = locked.log_in().cookie, locked.log_in().cookie
    assert locked.ask("/logout", cookie=cookie).status == 303
    assert locked.ask("/config", cookie=cookie).status == 401
    assert locked.ask("/config", cookie=other).status == 200


def test_a_session_ends(locked, monkeypatch):
    monkeypatch.setattr("backend.logins.SESSION_SECONDS", -1)
    assert locked.ask("/config", cookie=locked.log_in().cookie).status == 401


def test_guessing_is_slowed_down_even_for_the_right_guess(locked, monkeypatch):
    for _ in range(FAILURES):
        assert locked.log_in(password="guess").status == 400
    assert locked.log_in(password="guess").status == 429
    assert locked.log_in().status == 429
    assert locked.log_in(client="5.6.7.8").status == 200
    monkeypatch.setattr("backend.logins.FAILURE_SECONDS", 0.0)
    assert locked.log_in().status == 200


def test_guessing_from_many_addresses_is_slowed_down_and_locks_nobody_out(locked, monkeypatch):
    for number in range(ALL_FAILURES):
        assert locked.log_in(password="guess", client=f"10.0.0.{number}").status == 400
    # Each address has one more guess, and not one after the other.
    assert locked.log_in(password="guess", client="10.1.0.1").status == 400
    assert locked.log_in(client="10.1.0.1").status == 429
    assert locked.log_in(client="5.6.7.8").status == 200
    monkeypatch.setattr("backend.logins.FAILURE_SECONDS", 0.0)
    assert locked.log_in(client="10.1.0.1").status == 200


def test_addresses_that_a_proxy_may_have_made_up_have_no_guess_each(locked):
    told = [locked.log_in(password="guess", client="127.0.0.1", x_forwarded_for=f"9.9.{n}.1, 8.8.{n}.1").status
            for n in range(ALL_FAILURES + 50)]  # fmt: skip
    assert told[:ALL_FAILURES] == [400] * ALL_FAILURES
    assert 429 in told[ALL_FAILURES + BURST : ALL_FAILURES + BURST + 2] and told.count(400) < ALL_FAILURES + BURST + 5
    # Of somebody who comes directly, what he says of himself counts for nothing.
    told = [locked.log_in(password="guess", client="5.5.5.5", x_forwarded_for=f"9.9.{n}.1").status for n in range(9)]
    assert told[0] == 400 and told[1:] == [429] * 8


def test_a_browser_that_was_logged_in_before_is_heard_behind_the_same_address(locked):
    cookies = [line.partition(";")[0] for line in locked.log_in().all_cookies]
    assert len(cookies) == 2
    for _ in range(FAILURES + 3):
        locked.log_in(password="guess")
    assert locked.log_in().status == 429
    assert locked.log_in(cookie=cookies[1]).status == 200
    # It is no login, and has an allowance of its own.
    assert locked.ask("/config", cookie=cookies[1]).status == 401
    assert locked.ask("/config", cookie=cookies[1].replace("_device", "")).status == 401
    wrong = [locked.log_in(password="guess", cookie=cookies[1]).status for _ in range(FAILURES + 1)]
    assert wrong == [400] * FAILURES + [429]
    assert locked.log_in(client="5.6.7.8").status == 200


def test_a_login_outlives_a_restart_and_no_change_of_the_password(tmp_path):
    account = Account("loom", "correct horse")
    client = Client(account=account, folder=tmp_path)
    cookie, gone = client.log_in().cookie, client.log_in().cookie
    client.ask("/logout", cookie=gone)
    assert (tmp_path / ".login.json").stat().st_mode & 0o777 == 0o600
    assert "horse" not in (tmp_path / ".login.json").read_text()
    again = Client(account=account, folder=tmp_path)
    assert again.ask("/config", cookie=cookie).status == 200
    assert again.ask("/config", cookie=gone).status == 401
    for other in (Account("loom", "another horse"), Account("weaver", "correct horse"), Account("loom", "x", True)):
        assert Client(account=other, folder=tmp_path).ask("/config", cookie=cookie).status == 401
    made_up = Client(account=Account("loom", "made up", True), folder=tmp_path).log_in(password="made up").cookie
    later = Client(account=Account("loom", "made up again", True), folder=tmp_path)
    assert later.ask("/config", cookie=made_up).status == 200


@pytest.mark.parametrize("spoilt", ["", "{}", "[]", '{"key": 5, "ended": {}}', '{"key": "00", "ended": {}}',
                                    '{"key": "' + "0" * 64 + '", "ended": []}', "[" * 5000, "readable"])  # fmt: skip
def test_a_key_that_is_none_or_others_can_read_is_made_anew(tmp_path, spoilt):
    account = Account("loom", "correct horse")
    cookie = Client(account=account, folder=tmp_path).log_in().cookie
    file = tmp_path / ".login.json"
    if spoilt == "readable":
        file.chmod(0o644)
    else:
        file.write_text(spoilt)
    client = Client(account=account, folder=tmp_path)
    assert client.ask("/config", cookie=cookie).status == 401
    assert client.ask("/config", cookie=client.log_in().cookie).status == 200
    assert Client(account=account, folder=tmp_path).ask("/config", cookie=client.log_in().cookie).status == 200


@given(some.text() | some.from_regex(r"\A\d{1,12}\.[0-9a-f]{32}\.[0-9a-f]{64}\Z"))
def test_no_cookie_that_we_have_not_signed_is_believed(token):
    logins = Logins(Account("loom", "correct horse"))
    assert not logins.is_valid(token) and logins.device(token) is None
    logins.end(token)


def test_a_huge_or_broken_form_is_just_wrong(locked):
    for body in (b"x" * 100_000, b"\xff\xfe", b"", b"username=loom&password=correct horse" + b"&" * 10_000):
        assert locked.ask("/login", "POST", body=body).status == 400
    assert locked.ask("/login", "DELETE").status == 405


def test_only_while_starting_gradio_may_ask_itself(locked):
    locked.guard.starting = True
    assert locked.ask("/gradio_api/startup-events").status == 200
    assert locked.ask("/gradio_api/startup-events/x").status == 401
    locked.guard.starting = False
    assert locked.ask("/gradio_api/startup-events").status == 401


# What a browser may do with an answer


@pytest.mark.parametrize(
    "ask", [{}, {"host": "evil.example"}, {"origin": "null"}, {"path": "/gradio_api/file=/x"}, {"path": "/login"}]
)
@pytest.mark.parametrize("account", [None, Account("loom", "correct horse")])
def test_every_answer_has_a_content_policy_and_nosniff(account, ask):
    headers = Client(account=account).ask(**ask).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe-inline" not in headers["content-security-policy"].partition("script-src")[2].partition(";")[0]
    assert "frame-ancestors 'self'" in headers["content-security-policy"]


def test_the_page_may_run_its_own_scripts_and_no_others(open_door):
    open_door.inner.kind, open_door.inner.body = b"text/html; charset=utf-8", PAGE
    answer = open_door.ask(accept="text/html,*/*", accept_encoding="gzip, br")
    # A page that came compressed could not be read, and its scripts would not run.
    assert b"accept-encoding" not in open_door.inner.asked
    assert gzip.decompress(answer.body) == PAGE and answer.headers["content-length"] == str(len(answer.body))
    scripts = answer.headers["content-security-policy"].partition("script-src ")[2].partition(";")[0].split()
    # printf 'window.a = 1' | openssl dgst -sha256 -binary | base64
    assert scripts == ["'self'", "'unsafe-eval'", "'sha256-Aif1QuaDxF56ZK3+IyoelKcjrWC+BWl5ZGfcO1AMmA4='"]
    plain = open_door.ask(accept="text/html")
    assert plain.body == PAGE and "content-encoding" not in plain.headers


@pytest.mark.parametrize(
    "kind", [b"text/html", b"image/svg+xml", b"application/xhtml+xml", b"text/xml", b"application/octet-stream"]
)
def test_files_that_a_browser_could_run_are_only_saved(open_door, kind):
    open_door.inner.kind, open_door.inner.body = kind, PAGE
    open_door.inner.extra = [(b"content-disposition", b'inline; filename="a.html"')]
    answer = open_door.ask("/gradio_api/file=/w/a.html", accept="text/html")
    assert answer.headers["content-disposition"] == 'attachment; filename="a.html"'
    assert (
        "sandbox" in answer.headers["content-security-policy"]
        and "script-src" not in answer.headers["content-security-policy"]
    )
    assert answer.body == PAGE


@pytest.mark.parametrize("path", ["/loom/gradio_api/file=/w/evil.html", "/loom/loom/gradio_api/file=/w/evil.html",
                                  "/x/gradio_api/file=/w/evil.html"])  # fmt: skip
def test_below_a_proxys_path_files_are_only_saved_too(open_door, path):
    open_door.inner.kind, open_door.inner.body = b"text/html", PAGE
    answer = open_door.ask(path, root="/loom", accept="text/html")
    assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; sandbox")


@pytest.mark.parametrize("path", ["/other", "/loom/other", "/gradio_api/runs", "//"])
def test_scripts_of_the_page_alone_may_run(open_door, path):
    open_door.inner.kind, open_door.inner.body = b"text/html", PAGE
    assert "sha256" not in open_door.ask(path, root="/loom", accept="text/html").headers["content-security-policy"]
    page = open_door.ask("/loom/", root="/loom", accept="text/html")
    assert "sha256" in page.headers["content-security-policy"]


def test_the_login_is_found_below_a_proxys_path(locked):
    answer = locked.ask("/loom/", root="/loom", accept="text/html")
    assert (answer.status, answer.headers["location"]) == (303, "login")
    assert locked.ask("/loom/login", root="/loom").status == 200
    assert locked.ask("/loom/config", root="/loom").status == 401


def test_pictures_are_shown(open_door):
    open_door.inner.kind = b"image/png"
    open_door.inner.extra = [(b"content-disposition", b'inline; filename="a.png"')]
    assert open_door.ask("/gradio_api/file=/w/a.png").headers["content-disposition"] == 'inline; filename="a.png"'


def test_names():
    assert [host_name(text) for text in ("A.b:80", "[::1]:80", "x", " y ")] == ["a.b", "[::1]", "x", "y"]
    assert is_loopback("127.1.2.3") and is_loopback("[::1]") and not is_loopback("0.0.0.0") and not is_loopback("")
