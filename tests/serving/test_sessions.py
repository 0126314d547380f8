"""Sessions of Gradio's app, with its own classes."""

import types

import gradio as gr
import pytest
from gradio.routes import App

from backend import sessions
from backend.sessions import Sessions, session_of


@pytest.fixture(scope="module")
def page():
    """A page with a state and a box."""
    with gr.Blocks() as blocks:
        state = gr.State([1])
        box = gr.Textbox()
    return types.SimpleNamespace(app=App.create_app(blocks), state=state, box=box)


@pytest.fixture
def held(page, monkeypatch):
    monkeypatch.setattr(sessions, "GONE", 2)
    page.app.state_holder = type(page.app.state_holder).__mro__[-2]()
    page.app.state_holder.set_blocks(page.app.get_blocks())
    return Sessions(page.app)


def test_a_session_has_its_states_and_no_copy_of_the_page(held, page) -> None:
    session, other = page.app.state_holder["a"], page.app.state_holder["b"]
    session[page.state._id].append(2)
    session[page.box._id] = gr.Textbox(label="changed", render=False)
    session._update_value_in_config(page.box._id, "x" * 1000)
    session._update_config(page.box._id)
    assert (session[page.state._id], other[page.state._id]) == ([1, 2], [1])
    assert session[page.box._id].label == "changed" and other[page.box._id].label != "changed"
    assert len(session.config_values) == 0 and page.app.state_holder["a"] is session


def test_pages_that_are_gone_are_forgotten_but_for_the_last_ones(held, page) -> None:
    holder = page.app.state_holder
    for name in "abcdef":
        held.opened(name)
        holder[name][page.state._id].append(name)
    assert held.free() == 0
    for name in "abcd":
        held.closed(name)
    assert set(holder.session_data) == set(holder.time_last_used) == set("cdef")
    assert holder["e"][page.state._id] == [1, "e"] and holder["c"][page.state._id] == [1, "c"]
    # One that is back is kept, whatever comes.
    held.opened("c")
    for name in "ghi":
        assert holder[name] is not None
    held.free()
    assert set("cef") <= set(holder.session_data) and len(holder.session_data) == 5


def test_an_old_page_is_forgotten_and_a_busy_one_is_not(held, page, monkeypatch) -> None:
    holder, queue = page.app.state_holder, page.app.get_blocks()._queue
    monkeypatch.setattr(sessions, "GONE_SECONDS", 0.0)
    monkeypatch.setitem(queue.pending_event_ids_session, "busy", {"event"})
    for name in ("busy", "idle"):
        held.opened(name)
        assert holder[name] is not None
        held.closed(name)
    assert set(holder.session_data) == {"busy"}


def test_a_page_with_two_lines_is_open_until_both_are_gone(held, page, monkeypatch) -> None:
    monkeypatch.setattr(sessions, "GONE_SECONDS", 0.0)
    held.opened("a")
    held.opened("a")
    assert page.app.state_holder["a"] is not None
    held.closed("a")
    assert "a" in page.app.state_holder
    held.closed("a")
    assert "a" not in page.app.state_holder


@pytest.mark.parametrize(
    ("path", "name"),
    [("/gradio_api/heartbeat/x1", "x1"), ("/gradio_api/heartbeat/x/y", None), ("/", None), ("/heartbeat/x", None)],
)
def test_which_session_listens(path, name) -> None:
    assert session_of(path) == name
