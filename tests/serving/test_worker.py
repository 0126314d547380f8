"""The generate worker's client, against a worker of a few lines."""

import os
import signal
import sys
import threading
import time

import pytest

from backend.errors import UserError
from backend.worker import Cancelled, GenerateWorker, new_number, worker_argv
from backend.workspace import Workspace

WORKER = """
import json, os, sys, time
print("model library says hello")
print("loading", os.getpid(), file=sys.stderr, flush=True)
for line in sys.stdin:
    request = json.loads(line)
    def say(event, **fields):
        print(json.dumps({"id": request["id"], "event": event, **fields}), flush=True)
    op = request["op"]
    if op == "fail":
        say("error", message="no such model", field="model")
    elif op == "die":
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(3)
    elif op == "sleep":
        say("progress", step=0, total=1)
        time.sleep(request["seconds"])
        say("done", pid=os.getpid())
    elif op == "draw":
        say("progress", step=0, total=1)
        while True:
            heard = json.loads(sys.stdin.readline())
            if heard["op"] == "cancel" and heard["id"] == request["id"]:
                break
        say("cancelled", images=[])
    elif op == "cancel":
        pass
    elif op == "environment":
        say("done", environment=dict(os.environ))
    else:
        print(json.dumps({"id": "another", "event": "done"}), flush=True)
        for step in (1, 2):
            say("progress", step=step, total=2)
        say("done", pid=os.getpid(), prompt=request.get("prompt"))
"""


@pytest.fixture
def make(tmp_path):
    made = []

    def make(**options):
        worker = GenerateWorker(Workspace(tmp_path / "w"), argv=lambda: [sys.executable, "-c", WORKER], **options)
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker.stop()


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_it_is_started_when_asked_and_stays_hot(make):
    worker = make()
    assert not worker.running
    steps = []
    answer = worker.request({"op": "generate", "prompt": 'a "cat"\nü'}, lambda event: steps.append(event["step"]))
    assert answer["prompt"] == 'a "cat"\nü' and steps == [1, 2]
    assert worker.request({"op": "generate"})["pid"] == answer["pid"] and worker.running


def test_its_complaint_is_an_error_of_the_user_and_not_its_end(make):
    worker = make()
    with pytest.raises(UserError, match="model: no such model"):
        worker.request({"op": "fail"})
    assert worker.request({"op": "generate"})["pid"]


def test_a_dead_worker_is_reported_with_its_last_words_and_started_again(make):
    worker = make()
    first = worker.request({"op": "generate"})["pid"]
    with pytest.raises(UserError, match=r"exit code 3.*out of memory"):
        worker.request({"op": "die"})
    second = worker.request({"op": "generate"})["pid"]
    os.kill(second, signal.SIGKILL)
    until(lambda: not worker.running)
    third = worker.request({"op": "generate"})["pid"]
    assert len({first, second, third}) == 3


def test_release_waits_for_the_answer_and_ends_the_worker(make):
    worker = make()
    answers = []
    begun = threading.Event()
    call = {"op": "sleep", "seconds": 0.3}
    thread = threading.Thread(target=lambda: answers.append(worker.request(call, lambda _: begun.set())))
    thread.start()
    begun.wait(10)
    with worker.released():
        pass
    thread.join()
    assert answers[0]["event"] == "done" and not alive(answers[0]["pid"])
    with worker.released():
        pass


def test_release_does_not_wait_for_ever(make, monkeypatch):
    monkeypatch.setattr("backend.worker.RELEASE_SECONDS", 0.2)
    worker = make()
    errors = []
    begun = threading.Event()

    def ask():
        try:
            worker.request({"op": "sleep", "seconds": 60}, lambda _: begun.set())
        except UserError as error:
            errors.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    begun.wait(10)
    with worker.released():
        assert not worker.running
    thread.join(10)
    assert errors == ["a job has taken the device; try again when it has ended"] and not worker.running
    assert worker.request({"op": "generate"})["pid"]


def test_while_a_job_has_the_device_requests_are_refused_and_start_nothing(make):
    busy = [True]
    worker = make(busy=lambda: busy[0])
    with pytest.raises(UserError, match="a run is using the GPU; wait until it has ended, or stop it"):
        worker.request({"op": "generate"})
    assert not worker.running
    busy[0] = False
    assert worker.request({"op": "generate"})["pid"]


def test_no_request_slips_in_between_the_release_and_the_job(make):
    busy = [False]
    worker = make(busy=lambda: busy[0])
    errors = []

    def ask():
        try:
            worker.request({"op": "generate"})
        except UserError as error:
            errors.append(str(error))

    with worker.released():
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and not worker.running
        busy[0] = True
    thread.join(10)
    assert len(errors) == 1 and "using the GPU" in errors[0] and not worker.running


def test_closing_waits_for_nobody(make):
    worker = make()
    begun, errors = threading.Event(), []

    def ask():
        try:
            worker.request({"op": "sleep", "seconds": 60}, lambda _: begun.set())
        except UserError as error:
            errors.append(str(error))

    def release():
        with worker.released():
            pass

    threads = [threading.Thread(target=ask), threading.Thread(target=release)]
    threads[0].start()
    begun.wait(10)
    threads[1].start()
    began = time.monotonic()
    worker.close()
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - began < 5 and len(errors) == 1
    with pytest.raises(UserError, match="ending"):
        worker.request({"op": "generate"})


class Asker(threading.Thread):
    """Asks a worker for something; `error` is what came of it."""

    def __init__(self, worker, fields, number=None):
        super().__init__()
        self.worker, self.fields, self.number = worker, fields, number
        self.begun, self.error, self.answer = threading.Event(), None, None
        self.start()

    def run(self):
        try:
            self.answer = self.worker.request(self.fields, lambda _: self.begun.set(), self.number)
        except UserError as error:
            self.error = error


def test_a_drawing_is_cancelled_and_the_worker_stays_hot(make):
    worker = make()
    pid = worker.request({"op": "generate"})["pid"]
    assert not worker.cancel() and not worker.cancel(new_number())
    number = new_number()
    asker = Asker(worker, {"op": "draw"}, number)
    assert asker.begun.wait(10)
    assert not worker.cancel(new_number()) and asker.is_alive()
    assert worker.cancel(number)
    asker.join(10)
    assert isinstance(asker.error, Cancelled)
    assert not worker.cancel(number)
    assert worker.request({"op": "generate"}, number=number)["pid"] == pid


def test_a_request_that_waits_is_cancelled_at_once_and_the_others_are_not(make):
    worker = make()
    first, second, third = new_number(), new_number(), new_number()
    drawing = Asker(worker, {"op": "draw"}, first)
    assert drawing.begun.wait(10)
    waiting, patient = Asker(worker, {"op": "generate"}, second), Asker(worker, {"op": "generate"}, third)
    until(lambda: worker.cancel(second))
    waiting.join(10)
    assert isinstance(waiting.error, Cancelled) and drawing.is_alive() and patient.is_alive()
    worker.cancel(first)
    patient.join(10)
    assert patient.error is None and patient.answer["pid"]


def test_cancelling_without_a_number_ends_all_and_a_dead_worker_does_not_hinder_it(make):
    worker = make()
    askers = [Asker(worker, {"op": "draw"}), Asker(worker, {"op": "draw"})]
    until(lambda: any(asker.begun.is_set() for asker in askers) and len(worker._open) == 2)
    assert worker.cancel()
    for asker in askers:
        asker.join(10)
    assert all(isinstance(asker.error, Cancelled) for asker in askers)
    with pytest.raises(UserError, match="exit code 3"):
        worker.request({"op": "die"})
    assert not worker.cancel() and worker.request({"op": "generate"})["pid"]


def test_requests_of_several_browsers_take_turns(make):
    worker = make()
    prompts = [str(i) for i in range(8)]
    answers = []
    threads = [
        threading.Thread(target=lambda p=p: answers.append((p, worker.request({"op": "x", "prompt": p})["prompt"])))
        for p in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [(prompt, prompt) for prompt in prompts]


def test_an_idle_worker_is_ended(make):
    worker = make(idle_seconds=0.2)
    pid = worker.request({"op": "generate"})["pid"]
    until(lambda: not alive(pid))
    assert not worker.running and worker.request({"op": "generate"})["pid"] != pid


def test_it_does_not_inherit_our_password_and_knows_the_workspace(make, monkeypatch, tmp_path):
    monkeypatch.setenv("LORALOOM_PASSWORD", "open sesame")
    environment = make().request({"op": "environment"})["environment"]
    assert "LORALOOM_PASSWORD" not in environment and environment["LORALOOM_WORKSPACE"] == str(tmp_path / "w")


def test_the_command_line_is_the_generate_workers():
    assert worker_argv() == [sys.executable, "-m", "backend.generate"]
