"""What the Train tab's panel shows of a run beside what all runs have: loss, further curves, sample pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pandas

from backend.job import Job
from tabs import watch as watching
from tabs.charts import charts
from tabs.strip import LARGE, strip
from tabs.theme import ACCENT, SOFT_ACCENT
from tabs.watch import Watch

VALIDATION = "#d97706"


@dataclass(frozen=True)
class TrainingView:
    """The widgets, in the order of `outputs`.

    Attributes:
        served: folders whose files the server gives out.
    """

    plot: gr.LinePlot
    samples: gr.HTML
    curves: gr.HTML
    served: Sequence[Path]

    @property
    def outputs(self) -> list[Any]:
        return [self.plot, self.samples, self.curves]

    def updates(self, watch: Watch, job: Job | None) -> list[Any]:
        """Updates of `outputs`; without a job they are hidden."""
        if job is None:
            return [gr.update(visible=False)] * 3
        plot = samples = curves = gr.skip()
        newest = [points[-1] for points in (watch.losses, watch.validation) if points]
        if watch.changed("plot", newest):
            frame = pandas.DataFrame(watching.loss_curves(watch)) if newest else None
            plot = gr.update(value=frame, visible=len(watch.losses) > 1)
            drawn = charts(watch.curves)
            curves = gr.update(value=drawn, visible=bool(drawn))
        if watch.changed("samples", {index: list(row) for index, row in watch.samples.items()}):
            shown = strip(job, watch.samples, self.served)
            samples = gr.update(value=shown, visible=bool(shown))
        return [plot, samples, curves]

    def files(self, watch: Watch, job: Job) -> list[Path]:
        """What can be downloaded."""
        return watching.outputs(job)


def draw_training_view(served: Sequence[Path]) -> TrainingView:
    """Draw the loss plot, the samples and further curves, which are hidden until there are any.

    Args:
        served: folders whose files the server gives out.
    """
    plot = gr.LinePlot(
        x="step",
        y="loss",
        color="series",
        color_map={"loss": SOFT_ACCENT, "average": ACCENT, "validation": VALIDATION},
        colors_in_legend=["average", "loss", "validation"],
        x_title="step",
        y_title="loss",
        color_title=" ",
        height=220,
        show_label=False,
        buttons=["fullscreen"],
        visible=False,
        elem_id="loss",
    )
    samples = gr.HTML(visible=False, elem_id="samples", padding=False, js_on_load=LARGE)
    curves = gr.HTML(visible=False, elem_id="curves", padding=False)
    return TrainingView(plot, samples, curves, served)
