"""Stands in for the generate worker: draws one plain colour that follows from the seed and the multipliers."""

import json
import sys
import time
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def main() -> None:
    """Answer requests; counts them in the pictures' names, so that a test sees that the process stayed the same."""
    for count, line in enumerate(sys.stdin, start=1):
        request = json.loads(line)
        if request["prompt"] == "fail":
            print(json.dumps({"id": request["id"], "event": "error", "message": "no <b>luck</b>", "field": "prompt"}))
            sys.stdout.flush()
            continue
        for step in range(1, 4):
            print(json.dumps({"id": request["id"], "event": "progress", "step": step, "total": 3}), flush=True)
            time.sleep(0.05)
        seed = 77 if request["seed"] is None else request["seed"]
        dose = sum(lora["multiplier"] for lora in request["loras"])
        size = (request["width"] or 64, request["height"] or 64)
        path = Path(request["out_dir"]) / f"fake_{count}.png"
        info = PngInfo()
        info.add_text("parameters", f"{request['prompt']}\nSeed: {seed}, Dose: {dose:g}, Request: {count}")
        Image.new("RGB", size, (seed % 256, round(127 + 60 * dose) % 256, 90)).save(path, pnginfo=info)
        answer = {"id": request["id"], "event": "done", "images": [str(path)], "seeds": [seed], "seconds": 0.2}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
