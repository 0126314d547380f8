"""The launch line of the Train tab says what the options mean."""

import gradio as gr

from backend.config.train import TrainNetwork
from tabs.form import draw_form
from tabs.launch_line import draw_launch_line, launch_html

LINE = "python -m backend train_network --config_file config.toml --num_processes"


def test_the_line_follows_the_options() -> None:
    with gr.Blocks():
        form = draw_form(TrainNetwork)
        draw_launch_line(form)
    assert launch_html(form, (None, 1, 0, "", None)) == launch_html(form, (1, 1, 0, "", None)) == ""
    assert launch_html(form, (3, 2, 0, "10.0.0.1", None)) == ""  # which two machines cannot share
    assert f"<code>{LINE} 2</code>" in launch_html(form, (2.0, 1, 0, "", None))
    far = f"{LINE} 4 --num_machines 2 --main_process_ip 10.0.0.1 --main_process_port 29500 --machine_rank"
    shown = launch_html(form, (4, 2, 1, "10.0.0.1", None))
    assert [shown.count(f"<code>{far} {rank}</code>") for rank in (0, 1)] == [1, 1]
    assert "<b>" not in launch_html(form, (4, 2, 1, "<b>", None))
