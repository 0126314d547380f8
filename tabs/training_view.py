"""What the Train tab's panel shows of a run beside what all runs have: the loss and the sample pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pandas

from backend.job import Job
from tabs import watch as watching
from tabs.theme import ACCENT, SOFT_ACCENT
from tabs.watch import Watch


@dataclass(frozen=True)
class TrainingView:
    """The widgets, in the order of `outputs`."""

    plot: gr.LinePlot
    samples: gr.Gallery

    @property
    def outputs(self) -> list[Any]:
        return [self.plot, self.samples]

    def updates(self, watch: Watch, job: Job | None) -> list[Any]:
        """Updates of `outputs`; without a job they are hidden."""
        if job is None:
            return [gr.update(visible=False)] * 2
        plot = samples = gr.skip()
        if watch.changed("plot", len(watch.losses) and watch.losses[-1]):
            frame = pandas.DataFrame(watching.curves(watch)) if watch.losses else None
            plot = gr.update(value=frame, visible=len(watch.losses) > 1)
        if watch.changed("samples", watch.samples):
            samples = gr.update(value=watch.samples, visible=bool(watch.samples), selected_index=None)
        return [plot, samples]

    def files(self, watch: Watch, job: Job) -> list[Path]:
        """What can be downloaded."""
        return watching.outputs(job)


def draw_training_view() -> TrainingView:
    """Draw the loss plot and the samples, which are hidden until there are any."""
    plot = gr.LinePlot(
        x="step",
        y="loss",
        color="series",
        color_map={"loss": SOFT_ACCENT, "average": ACCENT},
        colors_in_legend=["average", "loss"],
        x_title="step",
        y_title="loss",
        color_title=" ",
        height=220,
        show_label=False,
        buttons=["fullscreen"],
        visible=False,
        elem_id="loss",
    )
    samples = gr.Gallery(
        label="Sample pictures",
        columns=4,
        height=200,
        object_fit="contain",
        buttons=["download", "fullscreen"],
        interactive=False,
        visible=False,
        elem_id="samples",
    )
    return TrainingView(plot, samples)
