"""Keys and sliders of the Generate tab: what is changed by hand draws the picture again, Ctrl+Enter draws a new one."""

import gradio as gr

HINT = "Ctrl+Enter generates. A slider that is released, an arrow key on it or a number that is typed draws again."
WAIT_MILLISECONDS = 250
# Listens in the tab's columns rather than to the sliders' own events, which also come where nothing has changed (when
# a field is left, say) and do not come for what is typed. A number out of its range waits until it is mended: Gradio
# does that when the field is left or Enter is pressed.
SCRIPT = """
const columns = element.closest("#generate-columns");
if (columns && !columns.dataset.keys) {
  columns.dataset.keys = "on";
  let timer = 0, drawn = null, typing = false;
  const fields = () => [...columns.querySelectorAll("input[type=number]")].filter((one) => one.offsetParent);
  const numbers = () => JSON.stringify(fields().map((one) => one.value));
  const isSlider = (one) => one.matches("input[type=range], input[type=number]");
  const isSound = (one) =>
    one.value !== "" && !one.validity.badInput && !one.validity.rangeUnderflow && !one.validity.rangeOverflow;
  // Steps and guidance may be set before there is any picture to be drawn again.
  const isLive = (one) => one.closest(".multiplier") || columns.querySelector("#picture img");
  const draw = () => {
    clearTimeout(timer);
    if (!fields().every(isSound)) return;
    drawn = numbers();
    columns.querySelector("#generate-again").click();
  };
  const soon = (one, wait) => {
    clearTimeout(timer);
    if (isLive(one)) timer = setTimeout(() => { if (numbers() !== drawn) draw(); }, wait);
  };
  const remember = () => { if (drawn === null) drawn = numbers(); };
  columns.addEventListener("focusin", remember);
  columns.addEventListener("pointerdown", () => { typing = false; remember(); }, true);
  columns.addEventListener("click", (event) => {
    if (event.target.closest(".reset-button")) soon(event.target, WAIT / 10);
  });
  columns.addEventListener("input", (event) => {
    if (event.target.matches("input[type=number]")) soon(event.target, WAIT);
  });
  // Of a slider this comes once the mouse lets go of it, and for each arrow key.
  columns.addEventListener("change", (event) => {
    if (isSlider(event.target)) soon(event.target, typing ? WAIT : 0);
  });
  columns.addEventListener("keydown", (event) => {
    typing = true;
    if (event.key !== "Enter" || event.isComposing || event.ctrlKey || event.metaKey) return;
    if (!isSlider(event.target)) return;
    event.preventDefault();
    // As when the field is left: a number out of its range is brought back into it.
    event.target.blur();
    event.target.focus();
    clearTimeout(timer);
    timer = setTimeout(draw, WAIT / 10);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing || !(event.ctrlKey || event.metaKey)) return;
    if (!columns.offsetParent) return;
    event.preventDefault();
    columns.querySelector("#generate").click();
  }, true);
}
""".replace("WAIT", str(WAIT_MILLISECONDS))


def draw_keys() -> gr.Button:
    """Draw the hint with the script; gives the button, not to be seen, that the script presses to draw again."""
    gr.HTML(f'<div class="hint">{HINT}</div>', js_on_load=SCRIPT, apply_default_css=False, padding=False)
    return gr.Button("Draw again", visible="hidden", elem_id="generate-again")
