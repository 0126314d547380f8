"""What each family of models is called: by people, and in the metadata of files."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Identity:
    """The names of a family.

    Attributes:
        title: as shown to people.
        base_model_versions: value of `ss_base_model_version` for epsilon and for v-prediction.
        architectures: value of `modelspec.architecture` of a checkpoint for epsilon and for v-prediction.
        implementation: value of `modelspec.implementation` of a LoRA.
    """

    title: str
    base_model_versions: tuple[str, str]
    architectures: tuple[str, str]
    implementation: str = "diffusers"


IDENTITIES: dict[str, Identity] = {
    "sd1": Identity("Stable Diffusion 1", ("sd_v1", "sd_v1"), ("stable-diffusion-v1", "stable-diffusion-v1")),
    "sd2": Identity(
        "Stable Diffusion 2", ("sd_v2", "sd_v2_v"), ("stable-diffusion-v2-512", "stable-diffusion-v2-768-v")
    ),
    "sdxl": Identity(
        "Stable Diffusion XL",
        ("sdxl_base_v1-0", "sdxl_base_v1-0"),
        ("stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1-base"),
        "https://github.com/Stability-AI/generative-models",
    ),
}


def title_of(family: str) -> str:
    """What people call a family."""
    return IDENTITIES[family].title
