"""Options of train_network: precision, memory and speed."""

from typing import Annotated, Literal

from pydantic import model_validator

from backend.config.declare import Option, Section, reject

ADVANCED = Option(advanced=True)


class Speed(Section):
    """Precision, memory, speed."""

    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Compute in half precision; saves memory and time on a GPU."""

    full_fp16: Annotated[bool, ADVANCED] = False
    """Keep the network's own weights, gradients and optimizer state in fp16 too. Needs mixed_precision fp16."""

    full_bf16: Annotated[bool, ADVANCED] = False
    """Keep the network's own weights, gradients and optimizer state in bf16 too. Needs mixed_precision bf16."""

    fp8_base: Annotated[bool, ADVANCED] = False
    """Keep the frozen weights of U-Net and text encoders in 8 bits, each row with a scale of its own: half the memory,
    a little slower. Needs mixed_precision fp16 or bf16."""

    fp8_base_unet: Annotated[bool, ADVANCED] = False
    """As fp8_base, for the U-Net alone."""

    xformers: bool = False
    """Memory-efficient attention from xformers, where a GPU can run it."""

    sdpa: Annotated[bool, ADVANCED] = False
    """PyTorch's own scaled dot product attention."""

    mem_eff_attn: Annotated[bool, ADVANCED] = False
    """Attention a slice at a time: slow, with little memory, for GPUs that neither xformers nor sdpa run well on."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: slower, with much less memory."""

    cpu_offload_checkpointing: Annotated[bool, ADVANCED] = False
    """Keep what gradient checkpointing still keeps in the CPU's memory. Needs gradient_checkpointing."""

    torch_compile: Annotated[bool, ADVANCED] = False
    """Compile the U-Net: minutes at the start, faster steps after."""

    dynamo_backend: Annotated[Literal["inductor", "aot_eager", "eager", "cudagraphs"], ADVANCED] = "inductor"
    """What torch_compile compiles with."""

    @model_validator(mode="after")
    def _each_with_what_it_needs(self) -> "Speed":
        for name, precisions in (
            ("full_fp16", ("fp16",)),
            ("full_bf16", ("bf16",)),
            ("fp8_base", ("fp16", "bf16")),
            ("fp8_base_unet", ("fp16", "bf16")),
        ):
            if getattr(self, name) and self.mixed_precision not in precisions:
                reject(name, f"needs mixed_precision {' or '.join(precisions)}, which is {self.mixed_precision}")
        if self.cpu_offload_checkpointing and not self.gradient_checkpointing:
            reject("cpu_offload_checkpointing", "has no effect without gradient_checkpointing; set both or neither")
        asked = [name for name in ("xformers", "sdpa", "mem_eff_attn") if getattr(self, name)]
        if "mem_eff_attn" in asked and len(asked) > 1:
            reject("mem_eff_attn", f"cannot be set together with {asked[0]}; choose one")
        return self
