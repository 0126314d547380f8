"""How well the text of a page can be read: WCAG 2.1's contrast ratio, measured in the browser that shows it."""

from typing import Any

from playwright.sync_api import Page

SCRIPT = """
() => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const parse = (text) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = text;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, two) => {
    const [high, low] = [light(one), light(two)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  // The colours behind an element, from the page's own upwards, and how much of the element is let through.
  const behind = (element) => {
    const chain = [];
    let opacity = 1;
    for (let one = element; one; one = one.parentElement) {
      const style = getComputedStyle(one);
      chain.unshift(parse(style.backgroundColor));
      opacity *= Number(style.opacity);
    }
    return [chain.reduce((below, top) => over(top, below), [255, 255, 255, 1]), opacity];
  };
  const seen = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true })
    && element.getClientRects().length > 0;
  const found = [];
  const judge = (element, text, color) => {
    if (!text.trim() || !seen(element) || element.closest("[disabled], .disabled, svg")) return;
    const [below, opacity] = behind(element);
    const front = parse(color);
    found.push({
      text: text.trim().slice(0, 60),
      ratio: ratio(over([front[0], front[1], front[2], front[3] * opacity], below), below),
      place: element.tagName.toLowerCase() + "." + element.className.toString().split(" ").join("."),
    });
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (["SCRIPT", "STYLE", "NOSCRIPT", "TEXTAREA", "OPTION", "TITLE"].includes(element.tagName)) continue;
    judge(element, walker.currentNode.data, getComputedStyle(element).color);
  }
  for (const field of document.querySelectorAll("input, textarea")) {
    const empty = field.placeholder && !field.value;
    const text = empty ? field.placeholder : ["text", "number", "textarea"].includes(field.type) ? field.value : "";
    judge(field, text, getComputedStyle(field, empty ? "::placeholder" : null).color);
  }
  return found;
}
"""


def texts(page: Page) -> list[dict[str, Any]]:
    """Every text and placeholder that can be seen, with the ratio to what lies behind it; what is disabled is not."""
    return page.evaluate(SCRIPT)
