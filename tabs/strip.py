"""The sample pictures of a run: a row for each prompt, a column for each step, the newest in sight."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from backend.job import Job
from tabs.thumbnails import thumbnail
from tabs.watch import COLUMNS, Sample

# A click shows a picture large, over the page, until the next click or Escape.
LARGE = """
element.addEventListener('click', (event) => {
  const link = event.target.closest('a');
  if (!link) return;
  event.preventDefault();
  const large = document.createElement('dialog');
  large.className = 'large-sample';
  const picture = document.createElement('img');
  picture.src = link.href;
  picture.alt = link.title;
  const words = document.createElement('p');
  words.textContent = link.title;
  large.append(picture, words);
  large.addEventListener('click', () => large.close());
  large.addEventListener('close', () => large.remove());
  document.body.append(large);
  large.showModal();
});
"""


def strip(job: Job, samples: Mapping[int, Mapping[int, Sample]], served: Sequence[Path]) -> str:
    """The strip as HTML; "" without pictures.

    Args:
        job: whose they are; small copies are kept in its folder.
        samples: by the index of their prompt and their step.
        served: folders whose files the server gives out.
    """
    steps = sorted({step for row in samples.values() for step in row})[-COLUMNS:]
    if not steps:
        return ""
    head = "".join(f"<th>{step}</th>" for step in steps)
    rows = []
    for index in sorted(samples):
        row = samples[index]
        newest = row[max(row)]
        seed = f"<small>seed {escape(newest.seed)}</small>" if newest.seed else ""
        words = f'<div title="{escape(newest.prompt)}">{escape(newest.prompt) or "(no prompt)"}</div>{seed}'
        cells = "".join(f"<td>{_cell(job, row.get(step), step, served)}</td>" for step in steps)
        rows.append(f"<tr><th>{words}</th>{cells}</tr>")
    # Scrolled from right to left, so that the newest is in sight wherever the strip is drawn anew.
    return (
        f'<div class="strip" dir="rtl" tabindex="0"><table dir="ltr"><thead><tr><th>step</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(job: Job, sample: Sample | None, step: int, served: Sequence[Path]) -> str:
    if sample is None:
        return ""
    path = Path(sample.path)
    small = thumbnail(path, job.folder / "thumbnails", served)
    if small is None:
        return ""
    words = f"step {step}, seed {sample.seed}: {sample.prompt}" if sample.seed else f"step {step}: {sample.prompt}"
    return (
        f'<a href="{_address(path)}" title="{escape(words)}" target="_blank">'
        f'<img src="{_address(small)}" alt="{escape(words)}" loading="lazy"></a>'
    )


def _address(path: Path) -> str:
    return f"gradio_api/file={quote(str(path.resolve()))}"
