"""Jobs: queue, states from files, stopping, what survives a killed web process."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from backend.errors import ConfigError, UserError
from backend.job import is_alive
from backend.job_runner import boot, identity
from backend.jobs import Jobs, backend_argv
from tests.jobs.conftest import accept_all_but_misspelt, script_argv

WAIT = "import time; print('started', flush=True); time.sleep(60)"
POLITE = """
import signal, sys, time
def end(*_):
    print("state saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("started", flush=True)
time.sleep(60)
"""
DEAF = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
time.sleep(60)
"""


def log(jobs, job):
    return jobs.tail(job.id)[0]


def test_a_job_is_queued_run_and_finished_and_leaves_its_files(jobs, until):
    script = "import os, sys; print(os.getcwd(), sys.stdin.read(), os.environ['LORALOOM_EVENTS'])"
    job = jobs.start("train_network", script, "my cat <b>")
    assert (job.state, job.title, job.started, job.exit_code) == ("queued", "my cat <b>", None, None)
    assert jobs.dispatch().state in ("running", "finished")
    until(lambda: jobs.get(job.id).state == "finished")
    done = jobs.get(job.id)
    assert done.exit_code == 0 and done.created <= done.started <= done.ended
    project = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    assert log(jobs, job).split() == [project, str(done.events)]
    assert done.config.read_text() == script and done.output.is_dir()
    assert jobs.reason(job.id) == ""


def test_the_command_line_is_what_a_shell_would_run(jobs):
    job = jobs.start("train_network", "x = 1")
    assert backend_argv(job) == [sys.executable, "-m", "backend", "train_network", "--config_file", str(job.config)]


def test_the_config_is_checked_again_and_a_wrong_one_makes_no_job(jobs, workspace):
    with pytest.raises(ConfigError, match="did you mean learning_rate"):
        jobs.start("train_network", "lerning_rate = 3")
    assert os.listdir(workspace.jobs) == []


def test_the_real_check_knows_commands_and_options(workspace):
    jobs = Jobs(workspace)
    with pytest.raises(UserError, match="no command trian_network"):
        jobs.start("trian_network", "")
    with pytest.raises(UserError, match="lerning_rate.*learning_rate"):
        jobs.start("train_network", 'lerning_rate = 3\npretrained_model_name_or_path = "x"\n')
    assert os.listdir(workspace.jobs) == []


def test_a_config_may_be_made_from_the_output_folder(jobs):
    job = jobs.start("train_network", lambda output: f"output = {str(output)!r}")
    assert job.config.read_text() == f"output = {str(job.output)!r}"


def test_one_runs_at_a_time_the_rest_in_order(jobs, until):
    first, second, third = (jobs.start("c", POLITE if i == 0 else f"print({i})") for i in range(3))
    jobs.dispatch()
    assert jobs.dispatch() is None
    assert [jobs.get(job.id).state for job in (first, second, third)] == ["running", "queued", "queued"]
    until(lambda: "started" in log(jobs, first))
    jobs.stop(first.id)
    until(lambda: jobs.get(first.id).state == "stopped")
    assert jobs.dispatch().id == second.id
    until(lambda: jobs.get(second.id).state == "finished")
    assert jobs.dispatch().id == third.id
    assert [job.id for job in jobs.list()] == [third.id, second.id, first.id]


def test_two_web_processes_do_not_start_two_jobs(jobs, workspace, until):
    for _ in range(3):
        jobs.start("c", WAIT)
    others = [Jobs(workspace, argv=script_argv, check=accept_all_but_misspelt) for _ in range(4)]
    threads = [threading.Thread(target=other.dispatch) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job.state for job in jobs.list()) == ["queued", "queued", "running"]


def test_the_dispatcher_runs_the_queue_without_anyone_looking(jobs, until):
    jobs.run(interval=0.05)
    made = [jobs.start("c", f"print({i})") for i in range(3)]
    until(lambda: all(jobs.get(job.id).state == "finished" for job in made))
    starts = [jobs.get(job.id).started for job in made]
    assert starts == sorted(starts)


def test_a_failed_job_says_why(jobs, until):
    said = jobs.start("c", "print('loading'); raise SystemExit('dataset_config: no such file: a.toml')")
    jobs.dispatch()
    until(lambda: not jobs.get(said.id).active)
    assert (jobs.get(said.id).state, jobs.get(said.id).exit_code) == ("failed", 1)
    assert jobs.reason(said.id) == "dataset_config: no such file: a.toml"
    record = "{'event': 'error', 'field': 'image_dir', 'message': 'holds no pictures'}"
    told = jobs.start(
        "c", f"import json, os; print(json.dumps({record}), file=open(os.environ['LORALOOM_EVENTS'], 'a')); 1/0"
    )
    jobs.dispatch()
    until(lambda: not jobs.get(told.id).active)
    assert jobs.reason(told.id) == "image_dir: holds no pictures"


def test_stop_lets_a_job_save_and_counts_as_stopped(jobs, until):
    job = jobs.start("c", POLITE)
    jobs.dispatch()
    until(lambda: "started" in log(jobs, job))
    assert jobs.stop(job.id).stopping or not jobs.get(job.id).active
    until(lambda: not jobs.get(job.id).active)
    assert jobs.get(job.id).state == "stopped" and "state saved" in log(jobs, job)


@pytest.mark.parametrize(
    ("file", "state"),
    [("last.safetensors", "finished"), ("last-step00000007.safetensors", "stopped"), ("last-000002.pt", "stopped")],
)
def test_a_job_that_was_done_when_it_was_asked_to_stop_is_finished(jobs, until, file, state):
    job = jobs.start("c", POLITE)
    jobs.dispatch()
    until(lambda: "started" in log(jobs, job))
    (job.output / file).write_bytes(b"weights")
    jobs.stop(job.id)
    until(lambda: not jobs.get(job.id).active)
    assert (jobs.get(job.id).state, jobs.get(job.id).exit_code) == (state, 0)


def test_a_second_stop_kills_the_whole_group(jobs, until):
    job = jobs.start("c", DEAF)
    jobs.dispatch()
    until(lambda: "child" in log(jobs, job))
    child = int(log(jobs, job).split()[1])
    assert jobs.stop(job.id).state == "running"
    assert jobs.stop(job.id).state == "stopped"
    until(lambda: not is_running(child))


def is_running(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_queued_job_that_is_stopped_never_runs(jobs):
    job = jobs.start("c", "print('ran')")
    assert jobs.stop(job.id).state == "stopped"
    assert jobs.dispatch() is None
    assert log(jobs, job) == ""
    assert jobs.stop(job.id).state == "stopped"


def test_a_stop_that_comes_while_another_process_starts_jobs_is_not_lost(jobs, workspace):
    job = jobs.start("c", "print('ran')")
    with (workspace.jobs / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        dispatching = threading.Thread(target=jobs.dispatch)
        dispatching.start()
        dispatching.join(0.5)
        assert dispatching.is_alive() and jobs.get(job.id).state == "queued"
        (job.folder / "stop").touch()
    dispatching.join()
    assert jobs.get(job.id).state == "stopped" and log(jobs, job) == ""


def test_what_a_crashed_command_leaves_behind_is_ended(jobs, until):
    script = "import subprocess, sys, os; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    job = jobs.start("c", script + "print(p.pid, flush=True); os.abort()")
    jobs.dispatch()
    until(lambda: not jobs.get(job.id).active)
    assert (jobs.get(job.id).state, jobs.get(job.id).exit_code) == ("failed", -signal.SIGABRT)
    until(lambda: not is_running(int(log(jobs, job).split()[0])))


def test_a_job_whose_runner_was_killed_is_interrupted_once_its_command_is_gone_too(jobs, until):
    job = jobs.start("c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    jobs.dispatch()
    until(lambda: log(jobs, job))
    runner, command = int((job.folder / "pid").read_text().split()[0]), int(log(jobs, job))
    os.kill(runner, signal.SIGKILL)
    until(lambda: not is_running(runner))
    # The command still holds the device: nothing else may start.
    jobs.start("c", "print(1)")
    assert jobs.get(job.id).state == "running" and jobs.dispatch() is None
    os.kill(command, signal.SIGKILL)
    until(lambda: jobs.get(job.id).state == "interrupted")
    assert jobs.reason(job.id) and jobs.dispatch() is not None


def test_a_later_process_with_the_same_number_is_not_the_job(jobs, until):
    job = jobs.start("c", WAIT)
    (job.folder / "pid").write_text(f"{os.getpid()} 1 {boot()}\n")
    assert jobs.get(job.id).state == "interrupted"
    (job.folder / "pid").write_text(f"{os.getpid()} {identity(os.getpid())}\n")
    assert is_alive(job.folder)
    start = identity(os.getpid()).split()[0]
    (job.folder / "pid").write_text(f"{os.getpid()} {start} another-boot\n")
    assert not is_alive(job.folder)
    (job.folder / "pid").write_text("")
    assert jobs.get(job.id).state == "interrupted"


def test_a_job_outlives_the_web_process_and_is_found_again(workspace, jobs, until):
    server = f"""
import sys, time
from backend.jobs import Jobs
from backend.workspace import Workspace
from tests.jobs.conftest import script_argv
jobs = Jobs(Workspace({str(workspace.root)!r}), argv=script_argv, check=lambda *_: None)
jobs.start("c", "import time; time.sleep(1.5); print('done')", "long")
jobs.start("c", "print('next')", "after")
jobs.run(0.05)
time.sleep(60)
"""
    web = subprocess.Popen([sys.executable, "-c", server])
    until(lambda: [job.state for job in jobs.list()] == ["queued", "running"])
    web.kill()
    web.wait()
    jobs.reconcile()
    after, long = jobs.list()
    assert (long.title, long.state, after.state) == ("long", "running", "queued")
    until(lambda: jobs.get(long.id).state == "finished")
    jobs.run(0.05)
    until(lambda: jobs.get(after.id).state == "finished")


def test_the_device_is_given_back_before_a_job_starts_and_only_then(workspace):
    calls = []

    @contextlib.contextmanager
    def release():
        calls.append([job.state for job in jobs.list()])
        yield
        calls.append([job.state for job in jobs.list()])

    jobs = Jobs(workspace, argv=script_argv, check=lambda *_: None, release=release)
    jobs.dispatch()
    assert calls == []
    job = jobs.start("c", WAIT)
    jobs.dispatch()
    assert calls == [["queued"], ["running"]] and jobs.busy()
    jobs.stop(job.id)
    jobs.stop(job.id)
    assert not jobs.busy()


def test_our_password_does_not_reach_a_job_but_its_workspace_does(jobs, workspace, until, monkeypatch):
    monkeypatch.setenv("LORALOOM_PASSWORD", "open sesame")
    job = jobs.start("c", "import os; print(os.environ.get('LORALOOM_PASSWORD'), os.environ['LORALOOM_WORKSPACE'])")
    jobs.dispatch()
    until(lambda: not jobs.get(job.id).active)
    assert log(jobs, job).split() == ["None", str(workspace.root)]


def test_delete_removes_an_ended_job_and_nothing_else(jobs, workspace, until):
    kept, job = jobs.start("c", "print(1)"), jobs.start("c", "print(2)")
    with pytest.raises(UserError, match="stop it first"):
        jobs.delete(job.id)
    jobs.stop(job.id)
    jobs.delete(job.id)
    assert [found.id for found in jobs.list()] == [kept.id]
    assert [name for name in os.listdir(workspace.jobs) if name != ".lock"] == [kept.id]


@pytest.mark.parametrize(
    "job_id", ["", ".", "..", "../datasets", "20260101-000000-00000000", "20260101-000000-0000000/", "a\0"]
)
def test_only_ids_of_jobs_are_looked_up(jobs, job_id):
    for action in (jobs.get, jobs.stop, jobs.delete, jobs.tail, jobs.events, jobs.reason):
        with pytest.raises(UserError, match="there is no job"):
            action(job_id)


def test_a_job_has_one_name(jobs):
    job = jobs.start("c", "pass")
    for name in (f"{job.id}/", f"./{job.id}", f"../jobs/{job.id}", f" {job.id}", f"{job.id}\n"):
        with pytest.raises(UserError, match="there is no job"):
            jobs.get(name)


def test_a_job_that_has_been_taken_is_not_run_again(jobs):
    job = jobs.start("c", "pass")
    (job.folder / "pid").write_text("1 taken\n")
    command = [sys.executable, "-m", "backend.job_runner", str(job.folder), sys.executable, "-c", "print('ran')"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "" and (job.folder / "pid").read_text() == "1 taken\n"
    assert not (job.folder / "exit").exists()


def test_half_made_jobs_are_not_listed_and_old_ones_cleared(jobs, workspace):
    for name in (".new-20260101-000000-00000000", ".new-fresh", ".deleted-20260101-000000-00000001"):
        (workspace.jobs / name / "output").mkdir(parents=True)
    os.utime(workspace.jobs / ".new-20260101-000000-00000000", (1, 1))
    (workspace.jobs / "20260101-000000-00000002").mkdir()
    assert list(jobs.list()) == []
    jobs.reconcile()
    assert sorted(os.listdir(workspace.jobs)) == [".lock", ".new-fresh", "20260101-000000-00000002"]


def test_a_log_is_read_on_by_whole_characters_and_not_from_its_beginning_when_long(jobs):
    job = jobs.start("c", "pass")
    job.log.write_bytes("a€".encode()[:-1])
    text, offset = jobs.tail(job.id)
    assert (text, offset) == ("a", 1)
    job.log.write_bytes("a€".encode() + b"\xffb")
    assert jobs.tail(job.id, offset)[0] == "€\ufffdb"
    job.log.write_bytes(b"x" * 1000 + b"end")
    assert jobs.tail(job.id, 5, limit=10) == ("xxxxxxxend", 1003)
    assert jobs.tail(job.id, 1003) == ("", 1003)
    job.log.write_bytes(b"new")
    assert jobs.tail(job.id, 1003) == ("new", 3)


def test_a_command_that_cannot_be_started_fails_with_a_line(workspace, until):
    jobs = Jobs(workspace, argv=lambda _job: ["/no/such/program"], check=lambda *_: None)
    job = jobs.start("c", "")
    jobs.dispatch()
    until(lambda: not jobs.get(job.id).active)
    assert jobs.get(job.id).state == "failed" and "cannot start /no/such/program" in jobs.reason(job.id)
