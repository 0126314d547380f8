"""Stands in for the generate worker: draws one plain colour that follows from the seed and the multipliers."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

# A prompt that is drawn until somebody cancels it.
SLOW = "slow"


def say(request: dict[str, Any], event: str, **fields: Any) -> None:
    """Write one answer."""
    print(json.dumps({"id": request["id"], "event": event, **fields}), flush=True)


def main() -> None:
    """Answer requests; counts them in the pictures' names, so that a test sees that the process stayed the same."""
    count = 0
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "cancel":
            # Of a request that has ended.
            continue
        count += 1
        if request["prompt"] == "fail":
            say(request, "error", message="no <b>luck</b>", field="prompt")
            continue
        for step in range(1, 4):
            say(request, "progress", step=step, total=3)
            time.sleep(0.05)
        if request["prompt"] == SLOW:
            while json.loads(sys.stdin.readline()) != {"op": "cancel", "id": request["id"]}:
                pass
            say(request, "cancelled", images=[], seeds=[])
            continue
        seed = 77 if request["seed"] is None else request["seed"]
        dose = sum(lora["multiplier"] for lora in request["loras"])
        size = (request["width"] or 64, request["height"] or 64)
        path = Path(request["out_dir"]) / f"fake_{count}.png"
        info = PngInfo()
        info.add_text("parameters", f"{request['prompt']}\nSeed: {seed}, Dose: {dose:g}, Request: {count}")
        Image.new("RGB", size, (seed % 256, round(127 + 60 * dose) % 256, 90)).save(path, pnginfo=info)
        say(request, "done", images=[str(path)], seeds=[seed], seconds=0.2)


if __name__ == "__main__":
    main()
