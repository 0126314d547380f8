"""What one process of a run tells the others, as bytes: plain values as JSON, tensors as safetensors.

Whoever is reached under `main_process_ip` can send anything, so nothing here is unpickled: bytes are read as values, or
they are refused.
"""

import json
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from backend.bounded import parse_json
from backend.errors import UserError

MARK = b"loom wire 1\n"
# Most bytes of one message, as a stranger could make us take a multiple of it: the latents of a batch are far below.
LIMIT = 2**28
_LENGTH = 8


def pack(value: Any) -> bytes:
    """The bytes of a value.

    Args:
        value: None, a truth value, number, text or tensor, or a list, tuple or dict (with texts as keys) of such.
            Tuples come back as lists. Halves of surrogate pairs, as in names that are no UTF-8, are written out.

    Raises:
        TypeError: it holds something else.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(value, tensors)).encode("ascii")
    return b"".join((MARK, len(text).to_bytes(_LENGTH, "little"), text, safetensors.torch.save(tensors)))


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What JSON says of a value: a dict stands as {"table": ...}, a tensor as {"tensor": its number}."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Tensor):
        number = len(tensors)
        # A copy, as the format takes no two tensors of one storage.
        tensors[str(number)] = value.detach().cpu().clone().contiguous()
        return {"tensor": number}
    if isinstance(value, list | tuple):
        return [_plain(item, tensors) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"table": {_plain(key, tensors): _plain(item, tensors) for key, item in value.items()}}
    raise TypeError(f"{type(value).__name__} cannot be told to other processes")


def unpack(data: bytes, sender: str) -> Any:
    """The value of bytes that another process has sent.

    Args:
        data: the bytes; any at all.
        sender: who has sent them, for the message.

    Raises:
        UserError: they are no value.
    """
    begin = len(MARK) + _LENGTH
    size = int.from_bytes(data[len(MARK) : begin], "little")
    if len(data) > LIMIT or not data.startswith(MARK) or len(data) < begin + size:
        raise stranger(sender, "it speaks another language")
    try:
        told = parse_json(data[begin : begin + size].decode("ascii"), "it", None)
        return _value(told, safetensors.torch.load(data[begin + size :]))
    except UserError as error:
        raise stranger(sender, error.message) from None
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise stranger(sender, str(error) or type(error).__name__) from None


def _value(told: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(told, list):
        return [_value(item, tensors) for item in told]
    if not isinstance(told, dict):
        return told
    if told.keys() == {"tensor"} and type(told["tensor"]) is int:
        return tensors[str(told["tensor"])]
    if told.keys() == {"table"} and isinstance(told["table"], dict):
        return {key: _value(item, tensors) for key, item in told["table"].items()}
    raise ValueError("an object is neither a table nor a tensor")


class Stranger(UserError):
    """What another process sent is no message of this run, so there is nothing more to agree on with it."""


def stranger(sender: str, reason: str) -> Stranger:
    """What to say of a process that sends what none of this run would."""
    line = " ".join(reason.split())[:200]
    return Stranger(
        f"{sender} sent what is no message of this run ({line}); see main_process_ip, and that all machines have the "
        "same version",
        "main_process_ip",
    )
