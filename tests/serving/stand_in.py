"""Runs webui.py with small tabs of its own: `python -m tests.serving.stand_in [webui flags]`.

The tabs hold one of every kind of component that needs something from the content policy: plots evaluate expressions,
`js=` is compiled in the browser, pictures and files come from the workspace.
"""

import sys
import types
from typing import Any

import gradio as gr
import pandas
from PIL import Image

import webui
from backend.serving import Services


def build(services: Services) -> gr.Blocks:
    """A page with a button that must work, a slider, a picture, a plot, downloads and hostile text."""
    output = services.workspace.jobs / "20260101-000000-00000000" / "output"
    output.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(output / "picture.png")
    (output / "lora.safetensors").write_bytes(b"weights" * 1000)
    (output / "evil.html").write_text("<script>document.title = 'owned'</script>")
    (output / "evil.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>")
    losses = pandas.DataFrame({"step": range(9), "loss": [1 / (i + 1) for i in range(9)], "color": ["a"] * 9})
    with gr.Blocks(title="stand-in") as demo:
        with gr.Tabs(), gr.Tab("One"):
            name = gr.Textbox(label="Name")
            greet = gr.Button("Greet")
            answer = gr.Textbox(label="Answer")
            scale = gr.Slider(0, 1, 0.5, label="Scale")
            gr.LinePlot(losses, x="step", y="loss", color="color", label="Loss")
            gr.Gallery([str(output / "picture.png")], label="Pictures")
            gr.File([str(output / "lora.safetensors"), str(output / "evil.html")], label="Files")
            gr.DownloadButton("Download", str(output / "lora.safetensors"))
            upload = gr.File(label="Upload", file_count="multiple")
            count = gr.Textbox(label="Count")
            gr.HTML("<p id='hostile'>x</p><img src='nowhere' onerror=\"document.title='owned'\">")
            # Compiled by the browser from the page's own data, with an element's own `new Function`.
            gr.HTML("<b></b>", js_on_load="element.querySelector('b').textContent = 'script ran'")
            ticks = gr.Number(0, label="Ticks")
            gr.Timer(0.5).tick(lambda n: n + 1, ticks, ticks, show_progress="hidden")
        greet.click(lambda text: f"hello {text}", name, answer, js="text => text + '!'", api_name="greet")
        scale.release(lambda value: str(value), scale, answer, api_name="scale")
        upload.upload(lambda files: str(len(files)), upload, count, api_name="count")
    return demo


def main(argv: list[str]) -> int:
    tabs: Any = types.ModuleType("tabs")
    tabs.build = build
    tabs.LAUNCH = {"css": "body { color: black }", "js": "() => { window.pageScriptRan = true }", "head": ""}
    sys.modules["tabs"] = tabs
    return webui.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
