"""What a pair of runs is asked to do; the same for both sides."""

from dataclasses import dataclass
from pathlib import Path

FAMILY_OF = {"demo": "sd1", "sd15": "sd1", "sdxl": "sdxl"}


@dataclass(frozen=True)
class Settings:
    """One comparison.

    Attributes:
        model: demo, sd15 or sdxl.
        resolution: edge of the pictures in pixels.
        batch_size: pictures of a step.
        rank: of the LoRA; its alpha is the same.
        precision: accelerate's mixed_precision, no, fp16 or bf16.
        checkpointing: gradient checkpointing.
        inputs: given (latents and conditioning are there already) or documented (as the library's example does).
        device: cpu or cuda.
        threads: that PyTorch computes with on the CPU.
        checkpoint: Diffusers folder of the model; None makes random weights on the device.
        folder: where files of this comparison may lie.
        steps: that are taken in all.
        extra: further options of ours, each a word of the command line.
    """

    model: str
    resolution: int
    batch_size: int
    rank: int
    precision: str
    checkpointing: bool
    inputs: str
    device: str
    threads: int
    checkpoint: Path | None
    folder: Path
    steps: int
    extra: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The model's family, a name of `backend.families.base.FAMILIES`."""
        return FAMILY_OF[self.model]

    def title(self) -> str:
        """The comparison in a few words."""
        words = [self.model, f"{self.resolution} px", f"batch {self.batch_size}", f"rank {self.rank}"]
        words += ["float32" if self.precision == "no" else self.precision]
        words += ["checkpointing"] if self.checkpointing else []
        return ", ".join([*words, *(word.removeprefix("--") for word in self.extra)])


@dataclass(frozen=True)
class Drawing:
    """One comparison of how pictures are drawn.

    Attributes:
        model, resolution, device, threads, checkpoint: as in `Settings`.
        precision: of U-Net and text encoders, no, fp16 or bf16.
        steps: of denoising.
        scale: of guidance.
        lora: a LoRA file for the model.
    """

    model: str
    resolution: int
    precision: str
    steps: int
    scale: float
    device: str
    threads: int
    checkpoint: Path | None
    lora: Path

    @property
    def family(self) -> str:
        """The model's family, a name of `backend.families.base.FAMILIES`."""
        return FAMILY_OF[self.model]
