"""What a model predicts, the noise (epsilon) or v (arXiv 2202.00512): as its file says, or as the user says."""

from collections.abc import Collection, Mapping
from typing import Any

from backend.errors import UserError

EPSILON, V = "epsilon", "v_prediction"
# Empty tensors with these names mark v-prediction and a schedule that ends in pure noise, in NoobAI's files and others.
V_KEY, ZERO_SNR_KEY = "v_pred", "ztsnr"
_FIELDS = ("modelspec.prediction_type", "modelspec.predict_key", "modelspec.predict_type")
_WORDS = {"epsilon": EPSILON, "eps": EPSILON, "v": V, "v_prediction": V, "v-prediction": V, "vpred": V, "v_pred": V}
_ARCHITECTURES = {"stable-diffusion-v2-768-v": V, "stable-diffusion-v2-512": EPSILON}
V_EDGE = 768  # Stable Diffusion 2 came at 512 pixels for epsilon and at 768 for v


def stated(names: Collection[str], metadata: Mapping[str, str], family: str) -> str | None:
    """The prediction type that a single file states, or None where it says nothing.

    The mark of NoobAI's files counts before the ModelSpec fields, as these are often copied from a parent model. A
    file of Stable Diffusion 2 that says it was made for 768 pixels is of the v kind, which is the one of that size.
    """
    if V_KEY in names:
        return V
    for field in _FIELDS:
        word = metadata.get(field, "").strip().lower()
        if word in _WORDS:
            return _WORDS[word]
    architecture = metadata.get("modelspec.architecture", "").split("/")[0].lower()
    if architecture in _ARCHITECTURES:
        return _ARCHITECTURES[architecture]
    if family == "sd2" and metadata.get("modelspec.resolution", "").lower().split("x")[0] == str(V_EDGE):
        return V
    return None


def settle(scheduler: dict[str, Any], said: str | None, v_parameterization: bool, source: str) -> str:
    """The prediction type to work with: what the source says, else what the user says, else epsilon.

    Raises:
        UserError: the two contradict each other.
    """
    if v_parameterization and said == EPSILON:
        message = f"is set, but {source} says that it predicts epsilon; leave it out"
        raise UserError(message, field="v_parameterization")
    scheduler["prediction_type"] = said or (V if v_parameterization else EPSILON)
    return scheduler["prediction_type"]
