"""How the page looks: one accent, the system's own fonts, nothing from another host."""

import gradio as gr
from gradio.themes.utils.colors import Color
from gradio.themes.utils.fonts import Font

ACCENT = "#4f46e5"
SOFT_ACCENT = "#c7c4f5"

_INDIGO = Color(
    name="loom",
    c50="#f1f1fd",
    c100="#e3e3fb",
    c200="#c7c4f5",
    c300="#a6a1ee",
    c400="#8079e6",
    c500="#635bdf",
    c600=ACCENT,
    c700="#4038c0",
    c800="#332d97",
    c900="#2a2672",
    c950="#191746",
)

THEME = gr.themes.Base(
    primary_hue=_INDIGO,
    secondary_hue=_INDIGO,
    neutral_hue=gr.themes.colors.slate,
    spacing_size=gr.themes.sizes.spacing_sm,
    radius_size=gr.themes.sizes.radius_md,
    text_size=gr.themes.sizes.text_md,
    font=[Font("system-ui"), Font("sans-serif")],
    font_mono=[Font("ui-monospace"), Font("monospace")],
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    # Hints and placeholders can be read: 4.5 and more against whatever they stand on.
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    block_background_fill="white",
    block_background_fill_dark="*neutral_900",
    block_border_color="*neutral_200",
    block_border_color_dark="*neutral_800",
    block_label_background_fill="transparent",
    block_label_background_fill_dark="transparent",
    block_label_border_width="0px",
    block_label_text_color="*neutral_600",
    block_label_text_color_dark="*neutral_300",
    block_title_text_color="*neutral_800",
    block_title_text_color_dark="*neutral_100",
    block_title_text_weight="500",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_info_text_size="*text_xs",
    block_shadow="none",
    block_shadow_dark="none",
    input_border_width="1px",
    input_padding="8px 10px",
    input_border_width_dark="1px",
    input_background_fill="white",
    input_background_fill_dark="*neutral_950",
    input_border_color="*neutral_300",
    input_border_color_dark="*neutral_700",
    input_border_color_focus="*primary_500",
    input_border_color_focus_dark="*primary_400",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_500",
    button_primary_text_color="white",
    button_secondary_background_fill="white",
    button_secondary_background_fill_hover="*neutral_100",
    button_secondary_background_fill_dark="*neutral_800",
    button_secondary_background_fill_hover_dark="*neutral_700",
    button_secondary_border_color="*neutral_300",
    button_secondary_border_color_dark="*neutral_700",
    button_border_width="1px",
    button_large_text_weight="600",
    button_small_text_weight="500",
    slider_color="*primary_600",
    slider_color_dark="*primary_400",
    checkbox_background_color_selected="*primary_600",
    checkbox_background_color_selected_dark="*primary_500",
    checkbox_border_color_selected="*primary_600",
    link_text_color="*primary_600",
    link_text_color_dark="*primary_300",
)

CSS = """
.gradio-container { overflow: clip visible !important; width: 100%; max-width: 1560px !important;
  margin: 0 auto !important; }
#brand { padding: 2px 0 0; }
#brand .brand { display: flex; align-items: center; gap: 10px; }
#brand svg { width: 30px; height: 30px; flex: none; }
#brand b { font-size: 1.15rem; letter-spacing: -.01em; }
#brand span { color: var(--body-text-color-subdued); font-size: .9rem; }
.section > .label-wrap span { font-weight: 600; font-size: .95rem; }
.card { border: 1px solid var(--block-border-color); border-radius: var(--block-radius); padding: 10px;
  background: var(--block-background-fill); gap: 8px; }
.card .form, .section .form { border: 0; background: none; gap: 10px; }
.card .form > .block, .section .form > .block, .section > .block.option { border: 0 !important; padding: 2px;
  overflow: visible !important; background: none; }
.options > .form { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(170px, 100%), 1fr)); }
.options .block > .container, .options .block > label.container { display: flex; flex-direction: column; height: 100%; }
.options .container > .wrap, .options .container > .input-container, .options .container > input { margin-top: auto; }
.option label span, .option .label-text, .option [data-testid=block-info] { overflow-wrap: anywhere;
  white-space: normal; }
.option label { min-width: 0; }
.section > .label-wrap > span:first-child { text-align: left; }
.option .info-text { line-height: 1.35; margin-bottom: 4px; }
.hide-container > .html-container { padding: 0 !important; }
.block:has(> .html-container > .prose:empty) { display: none; }
.options.narrow > .form { grid-template-columns: repeat(auto-fit, minmax(min(130px, 100%), 1fr)); }
.container > .wrap > .wrap-inner { min-height: 34px; }
.hint { color: var(--body-text-color-subdued); font-size: .88rem; line-height: 1.45; }
.hint p { margin: 0; }
.invalid input, .invalid textarea, .invalid .wrap-inner { border-color: #dc2626 !important; }
.invalid .info-text { color: #dc2626; } .dark .invalid .info-text { color: #f87171; }
.invalid, .invalid .wrap { border-color: #dc2626 !important; }
.problems { border: 1px solid #dc2626; border-left-width: 4px; border-radius: 8px; padding: 10px 14px;
  background: color-mix(in srgb, #dc2626 7%, var(--block-background-fill)); line-height: 1.45; }
.problems ul { margin: 0; padding: 0; list-style: none; }
.problems li { overflow-wrap: anywhere; }
.problems li + li { margin-top: 4px; }
.problems code { font-weight: 600; background: none; padding: 0; }
.notice { border-left: 4px solid var(--primary-500); border-radius: 6px; padding: 8px 12px; font-size: .92rem;
  background: var(--block-background-fill); border-top: 1px solid var(--block-border-color);
  border-right: 1px solid var(--block-border-color); border-bottom: 1px solid var(--block-border-color);
  overflow-wrap: anywhere; }
ul.option-list:not(:has(li))::after { content: "Nothing in the list fits"; display: block; padding: 8px 12px;
  color: var(--body-text-color-subdued); font-size: .9rem; }
.warning { border: 1px solid #b45309; border-left-width: 4px; border-radius: 8px; padding: 10px 14px; line-height: 1.45;
  background: color-mix(in srgb, #b45309 7%, var(--block-background-fill)); overflow-wrap: anywhere; }
#device { color: var(--body-text-color-subdued); font-size: .85rem; line-height: 1.4; overflow-wrap: anywhere; }
#device .unused { color: #b45309; } .dark #device .unused { color: #fbbf24; }
.told { font-size: .9rem; line-height: 1.5; overflow-wrap: anywhere; }
.told h4 { margin: 12px 0 4px; font-size: .92rem; font-weight: 600; }
.told ul { margin: 0; padding: 0 0 0 18px; list-style: disc; } .told li { margin: 0 !important; }
.told code { background: none; padding: 0; }
.told details { margin-top: 10px; } .told summary { cursor: pointer; font-weight: 600; }
.told pre { margin: 6px 0 0; max-height: 320px; overflow: auto; white-space: pre; }
.status { border: 1px solid var(--block-border-color); border-radius: 8px; padding: 14px 16px;
  background: var(--block-background-fill); overflow-wrap: anywhere; }
.status .top { display: flex; justify-content: space-between; gap: 12px; align-items: baseline; }
.status .name { font-weight: 600; font-size: 1.02rem; }
.status .state { font-size: .85rem; color: var(--body-text-color-subdued); white-space: nowrap; }
.status .state.running { color: var(--primary-600); } .dark .status .state.running { color: var(--primary-300); }
.status .state.failed, .status .state.interrupted { color: #dc2626; }
.dark .status .state.failed, .dark .status .state.interrupted { color: #f87171; }
.status .state.finished { color: #15803d; } .dark .status .state.finished { color: #4ade80; }
.status .why { margin-top: 8px; color: #dc2626; } .dark .status .why { color: #f87171; }
.passed-over { border-left: 4px solid #f59e0b; border-radius: 6px; padding: 4px 12px; margin-top: 6px;
  font-size: .88rem; line-height: 1.45; overflow-wrap: anywhere; }
.passed-over ul { margin: 0; padding-left: 16px; }
.status .warn { margin-top: 6px; color: #b45309; font-size: .9rem; } .dark .status .warn { color: #fbbf24; }
.bar { height: 8px; border-radius: 4px; margin: 10px 0 10px; overflow: hidden;
  background: color-mix(in srgb, var(--body-text-color) 12%, transparent); }
.bar i { display: block; height: 100%; border-radius: 4px; background: var(--primary-500); transition: width .4s; }
.bar.idle i { width: 30% !important; animation: shuttle 1.6s ease-in-out infinite alternate; }
@keyframes shuttle { from { transform: none } to { transform: translateX(calc(100% * 7 / 3)) } }
@media (prefers-reduced-motion: reduce) { .bar.idle i { animation: none } }
.figures { display: flex; flex-wrap: wrap; gap: 6px 22px; }
.figures div { display: flex; flex-direction: column; }
.figures span { font-size: .76rem; color: var(--body-text-color-subdued); }
.figures b { font-weight: 600; font-variant-numeric: tabular-nums; }
.empty { text-align: center; padding: 26px 20px; color: var(--body-text-color-subdued); line-height: 1.5;
  border: 1px dashed var(--block-border-color); border-radius: 8px; }
.empty b { color: var(--body-text-color); }
.jobs .wrap { flex-direction: column; gap: 4px; max-height: 170px; overflow-y: auto; flex-wrap: nowrap; }
.jobs label { width: 100%; padding: 6px 10px; font-variant-numeric: tabular-nums; flex: none; }
.jobs label span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.log textarea { font-family: var(--font-mono); font-size: .78rem; line-height: 1.45; }
#picture img { width: 100%; height: 100%; object-fit: contain; }
.crisp img { image-rendering: pixelated; }
#dataset-pictures .grid-container { grid-template-columns: repeat(auto-fill, minmax(86px, 1fr)); }
#history .grid-container { grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); }
#history .grid-wrap { padding-top: 30px; }
#dataset-pictures .caption-label, #history .caption-label { font-size: .75rem;
  max-width: 100%; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; }
.strip { overflow-x: auto; overscroll-behavior-x: contain; border-radius: 8px;
  border: 1px solid var(--block-border-color); background: var(--block-background-fill); }
.strip:focus-visible { outline: 2px solid var(--primary-400); }
.strip table { margin: 0 !important; border: 0 !important; border-collapse: collapse; min-width: 100%; }
.strip table th, .strip table td { border: 0 !important; padding: 3px !important; text-align: left;
  vertical-align: top; }
.strip td { width: 102px; min-width: 102px; }
.strip tr { border: 0 !important; background: none !important; }
.strip thead th { font-size: .74rem; font-weight: 400; color: var(--body-text-color-subdued);
  font-variant-numeric: tabular-nums; }
.strip table th:first-child { position: sticky; left: 0; z-index: 1; width: 132px; min-width: 132px;
  padding: 3px 8px !important; background: var(--block-background-fill);
  font-weight: 400; font-size: .78rem; line-height: 1.35; }
.strip th div { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4; overflow: hidden;
  overflow-wrap: anywhere; }
.strip th small { color: var(--body-text-color-subdued); }
.strip table img { display: block; width: 96px; max-width: none; height: 96px; margin: 0 !important;
  object-fit: contain; border-radius: 4px;
  image-rendering: auto; background: color-mix(in srgb, var(--body-text-color) 5%, transparent); }
.strip a { display: block; cursor: zoom-in; }
.large-sample { border: 0; padding: 0; margin: auto; max-width: 96vw; max-height: 96vh; background: none;
  cursor: zoom-out; text-align: center; outline: none; }
.large-sample::backdrop { background: rgb(0 0 0 / 78%); }
.large-sample img { display: block; margin: auto; min-width: min(512px, 92vw); max-width: 96vw;
  max-height: 84vh; object-fit: contain; }
.large-sample p { color: white; margin: 8px auto 0; max-width: 80ch; font-size: .9rem; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(160px, 100%), 1fr)); gap: 14px 18px;
  padding: 10px 12px; border: 1px solid var(--block-border-color); border-radius: 8px;
  background: var(--block-background-fill); }
.chart { margin: 0; min-width: 0; }
.chart figcaption { font-size: .8rem; line-height: 1.4; margin-bottom: 4px; }
.chart figcaption div { display: flex; flex-wrap: wrap; gap: 0 12px; color: var(--body-text-color-subdued); }
.chart figcaption i { display: inline-block; width: 9px; height: 9px; border-radius: 2px; margin-right: 4px; }
.chart figcaption b { font-weight: 600; font-variant-numeric: tabular-nums; color: var(--body-text-color); }
.chart .plot { display: grid; grid-template-columns: auto minmax(0, 1fr); column-gap: 6px; }
.chart svg { grid-column: 2; grid-row: 1 / 3; width: 100%; height: 80px;
  border-left: 1px solid var(--block-border-color); border-bottom: 1px solid var(--block-border-color); }
.chart polyline { fill: none; stroke-width: 1.4; vector-effect: non-scaling-stroke; }
.chart em { font-style: normal; font-size: .7rem; color: var(--body-text-color-subdued); text-align: right;
  font-variant-numeric: tabular-nums; }
.chart .plot > em:nth-of-type(2) { align-self: end; }
.chart .ends { grid-column: 2; grid-row: 3; display: flex; justify-content: space-between; }
.lora-row, .pick { align-items: end; }
.lora-row.invalid .wrap-inner { border-color: #dc2626 !important; }
.about h2 { margin: 4px 0 2px; font-size: 1.15rem; letter-spacing: -.01em; }
.about p { margin: 0; max-width: 68ch; color: var(--body-text-color-subdued); line-height: 1.45; }
.report .figures { margin-top: 10px; }
.report .figures b { overflow-wrap: anywhere; }
.table { margin-top: 12px; max-height: 320px; overflow: auto; border: 1px solid var(--block-border-color);
  border-radius: 6px; }
.table:focus-visible { outline: 2px solid var(--primary-400); }
.downloads .label-clear-button { display: none; }
.table table { width: 100%; margin: 0 !important; border: 0 !important; border-collapse: collapse; font-size: .86rem;
  font-variant-numeric: tabular-nums; }
.table th { position: sticky; top: 0; background: var(--block-background-fill); font-weight: 600; text-align: left; }
.table th, .table td { padding: 5px 10px !important; vertical-align: top; border: 0 !important; white-space: nowrap;
  overflow-wrap: normal; }
.table tr { border: 0 !important; }
.status .hint + .bar { margin-top: 4px; }
.status .outlook { margin-top: 8px; }
.table td:last-child { white-space: normal; min-width: 7em; }
.table tbody tr:nth-child(odd) { background: color-mix(in srgb, var(--body-text-color) 4%, transparent); }
.run-buttons { flex-wrap: nowrap !important; }
.run-ends:not(:has(button)) { display: none; }
.unet { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 6px 14px; max-width: 760px; }
.unet .side { display: flex; flex-direction: column; gap: 3px; min-width: 0; }
.unet .mid { grid-column: 1 / -1; justify-self: center; width: calc(50% + 7px); }
.unet .head, .unet .cell { display: grid; grid-template-columns: 1.5em minmax(0, 1fr) 3.6em 3.2em; gap: 4px;
  align-items: center; }
.unet .head { font-size: .76rem; color: var(--body-text-color-subdued); text-align: center; }
.unet .head b { grid-column: 1 / 3; text-align: left; }
.unet .cell { min-height: 28px; padding: 2px 3px; border-radius: 6px; border: 1px solid var(--block-border-color);
  background: var(--block-background-fill); }
.unet .down .cell { margin-left: calc(var(--level) * var(--inset, 14px)); }
.unet .up .cell { margin-right: calc(var(--level) * var(--inset, 14px)); }
.unet i { font-style: normal; font-size: .76rem; text-align: right; color: var(--body-text-color-subdued);
  font-variant-numeric: tabular-nums; }
.unet .rate { height: 8px; border-radius: 4px; overflow: hidden;
  background: color-mix(in srgb, var(--body-text-color) 10%, transparent); }
.unet .rate::after { content: ""; display: block; height: 100%; width: calc(var(--rate) * 100%);
  background: var(--primary-500); transition: width .2s; }
.unet input { width: 100%; min-width: 0; padding: 1px 3px; border: 1px solid var(--input-border-color);
  border-radius: 4px; background: var(--input-background-fill); color: var(--body-text-color); font-size: .82rem;
  text-align: right; font-variant-numeric: tabular-nums; appearance: textfield; -moz-appearance: textfield; }
.unet input::-webkit-inner-spin-button, .unet input::-webkit-outer-spin-button { appearance: none; margin: 0; }
.unet input:focus { outline: 2px solid var(--primary-400); outline-offset: -1px; }
.unet input:disabled { border-color: transparent; background: none; color: var(--body-text-color-subdued); }
.unet .cell.none { color: var(--body-text-color-subdued); border-style: dashed; min-height: 20px; }
.unet .cell.off { border-style: dashed; background: none; }
.unet .cell.off i { text-decoration: line-through; }
.unet .cell.off .rate::after { background: var(--neutral-400); }
#blocks-parts .wrap { flex-direction: row; flex-wrap: wrap; }
.sizes { margin-top: 10px; display: flex; flex-direction: column; gap: 6px; }
@media (max-width: 600px) {
  .unet { --inset: 3px; gap: 6px; }
  .unet .head, .unet .cell { grid-template-columns: 1.4em 1fr 1fr; gap: 3px; }
  .unet .head { grid-template-columns: auto 1fr 1fr; text-align: right; padding-right: 6px; }
  .unet .head b { grid-column: 1; }
  .unet .rate { grid-column: 1 / -1; grid-row: 2; height: 4px; }
  .unet input { padding: 5px 4px; }
  .unet .mid { width: 60%; }
}
/* What Gradio itself has to say stands in the half of the window in which nothing was pressed last. */
.toast-wrap { top: auto !important; bottom: var(--size-3); left: auto !important; right: var(--size-3) !important;
  max-width: min(26rem, calc(100vw - 24px)) !important; max-height: 40vh; overflow-y: auto; pointer-events: none; }
[data-pressed=below] .toast-wrap { top: var(--size-3) !important; bottom: auto; }
.dark button[role=tab].selected { color: var(--primary-300); }
footer button, footer .divider { opacity: 1 !important; color: var(--body-text-color-subdued) !important; }
#run-column { flex-wrap: nowrap; scrollbar-width: thin; }
#run-column > * { flex-shrink: 0; max-width: 100%; }
@media (min-width: 1000px) {
  #run-column { position: sticky; top: 10px; align-self: flex-start; max-height: calc(100vh - 20px); overflow-y: auto; }
}
@media (max-width: 999px) {
  #brand span { display: none; }
  #train-columns { flex-direction: column-reverse; }
  .columns { flex-direction: column; }
  #train-columns > *, .columns > *, #generate-columns > * { min-width: 0 !important; width: 100%; }
}
@media (max-width: 700px) {
  .table table { font-size: .8rem; }
  .table th, .table td { padding: 4px 6px !important; }
  #generate-columns { flex-direction: column-reverse; }
  .run-buttons:has(#cancel) { gap: 6px; }
  #cancel { flex: 0 0 66px !important; min-width: 0 !important; padding: 0; font-size: .9rem; align-self: stretch; }
  #picture { height: min(560px, 100vw) !important; }
}
"""

# Tells the style sheet in which half of the window the last press was.
PRESSED = """
if (!document.documentElement.dataset.pressed) {
  const note = (y) => { document.documentElement.dataset.pressed = y > window.innerHeight / 2 ? "below" : "above"; };
  document.addEventListener("pointerdown", (event) => note(event.clientY), true);
  document.addEventListener("keydown", (event) => note(event.target.getBoundingClientRect?.().top ?? 0), true);
  note(0);
}
"""

BRAND = """
<div class="brand">
<svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="8" fill="#4f46e5"/>
<g fill="none" stroke-linecap="round" stroke-width="2.6"><path stroke="#c7c4f5" d="M10 6v20M16 6v20M22 6v20"/>
<path stroke="#fff" d="M6 11h2.6M11.6 11h9M23.6 11h2.4M6 21h2.6M11.6 21h9M23.6 21h2.4M6 16h8.6M17.6 16h8.4"/></g></svg>
<b>LoRA Loom</b><span>train a LoRA, then play it on a slider</span>
</div>
"""
