"""Checkpoints: safetensors files that hold a prior's weights, what builds it, and its model card. They run no code."""

import json
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save_file
from torch import Tensor

from companion import _reads, _support
from companion.priors.base import DTYPES, MODELS, Prior, check_storable

Kind = TypeVar("Kind", bound=type[Prior])


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and JSON facts to `path` in one atomic step: a reader sees the old file or the whole new one."""
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    # one field alone: the file format writes several in no fixed order, and equal content should give equal files
    facts = json.dumps({**about, "sha256": _digest(tensors, about)}, sort_keys=True)
    with _support.atomic(path) as part:
        save_file(tensors, part, metadata={"about": facts})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file that :func:`write_tensors` wrote.

    Raises ValueError where the file is missing, is something else, or is not, byte for byte, what was written.
    """
    try:
        content = path.read_bytes()  # at once: safe_open opens the path twice, and another file may lie there by then
        tensors = deserialize(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header["__metadata__"]["about"])
        if not isinstance(about, dict) or about.pop("sha256", None) != _digest(tensors, about):
            raise ValueError("its checksum does not match its content")
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        reason = "no facts about the model in it" if isinstance(error, KeyError) else one_line(error)
        raise ValueError(
            f"checkpoint: got {path.name}, which is corrupt or no checkpoint of this package ({reason}); "
            "allowed: a file that this package wrote, unchanged"
        ) from None
    return tensors, about


def one_line(error: Exception, longest: int = 200) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())[:longest]


def _digest(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    parts: list[str | Tensor] = [json.dumps(about, sort_keys=True)]
    for name in sorted(tensors):
        value = tensors[name]
        parts += [f"{name} {value.dtype} {tuple(value.shape)}", value]
    return _support.sha256(*parts)


def register(kind: Kind) -> Kind:
    """Let :func:`save`, :func:`load` and :func:`companion.training.averaged` know a class of your own: a decorator.

    A checkpoint holds the class's name and its arguments (numbers, text, tuples), but no code: import the class, which
    registers it, before you load. Defined anew, in a notebook, a class takes its predecessor's place. ValueError for
    what is no :class:`Prior` with a constructor of its own, for one whose arguments have no names (``*args``), and for
    the name of a model of this package; and, when one is built, for arguments that a checkpoint could not hold.
    """
    if not (isinstance(kind, type) and issubclass(kind, Prior) and hasattr(kind.__init__, "__wrapped__")):  # as noted
        raise ValueError(f"kind: got {kind!r}; allowed: a subclass of Prior or Flow that has its own __init__")
    nameless = [p for p in signature(kind).parameters.values() if p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)]
    if nameless:
        raise ValueError(f"kind: got {kind.__name__} with the argument {nameless[0]}; allowed: arguments with names")
    if MODELS.get(kind.__name__, kind).__module__ != kind.__module__:
        raise ValueError(f"kind: got {kind.__name__}, a name that is taken; allowed: not {', '.join(sorted(MODELS))}")
    MODELS[kind.__name__] = kind
    return kind


def save(prior: Prior, path: str | Path, card: dict[str, Any] | None = None, half: bool = False) -> Path:
    """Write `prior` to a safetensors file, with its model card (data, licence, budget, scores) if there is one.

    With `half`, weights are stored as float16, in half the space; loaded, they are float32 again, rounded. Raises
    ValueError for a class that :func:`load` does not know, for arguments that a checkpoint does not hold, and where a
    weight is too large for half precision.
    """
    path, kind = Path(path), type(prior)
    if MODELS.get(kind.__name__) is not kind:
        known = ", ".join(sorted(MODELS))
        allowed = f"{known}, or a class of your own after priors.register({kind.__name__})"
        raise ValueError(f"prior: got a {kind.__name__}, which load does not know; allowed: {allowed}")
    check_storable(prior)
    tensors = prior.state_dict()
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
        for name, value in tensors.items():
            _support.finite(name, value) if value.is_floating_point() else None
    write_tensors(path, tensors, {"model": kind.__name__, "config": prior.config, "card": card or {}})
    return path


def names() -> list[str]:
    """Names of the stored checkpoints."""
    return sorted(path.stem for path in (_support.store() / "checkpoints").glob("*.safetensors"))


def locate(name: str | Path) -> Path:
    """Path of a checkpoint given by its stored name or as a file; else ValueError."""
    if name in names():
        return _support.store() / "checkpoints" / f"{name}.safetensors"
    if not isinstance(name, str | Path) or not Path(name).is_file():
        known = ", ".join(names()) or "nothing yet"
        raise ValueError(f"prior: got {str(name)!r}, and there is no such file; allowed: a checkpoint file or {known}")
    return Path(name)


def load(name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Any:
    """The prior stored under `name` (or in a file), frozen and in evaluation mode; its model card is ``prior.card``.

    `dtype` is float32 or float64; by default that in which it was saved, and float32 for one stored in half precision.
    Raises ValueError for an unknown name and for a corrupt file.
    """
    path = _reads.note(locate(name))
    tensors, about = read_tensors(path)
    prior = build(path, about, tensors, dtype)
    prior.card = about.get("card", {})
    return prior.eval().requires_grad_(False).to(device)


def build(path: Path, about: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> Any:
    """The prior that the facts in `about` describe, with the weights in `tensors`; ValueError where they do not fit."""
    if dtype is None:
        dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors.values()) else torch.float32
    _support.one_of("dtype", dtype, DTYPES)
    try:
        kind, config = about["model"], about["config"]
        if kind not in MODELS:
            raise ValueError(f"no model {kind!r}: a class of your own needs priors.register first")
        prior: Prior = MODELS[kind](**{name: _argument(value) for name, value in config.items()}).to(dtype)
        for key, own in prior.state_dict().items():
            if key in tensors and tensors[key].is_floating_point() != own.is_floating_point():
                raise ValueError(f"{key} is {tensors[key].dtype}")
        prior.load_state_dict(tensors)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, RecursionError) as error:
        raise ValueError(
            f"checkpoint: got {path.name}, whose content does not fit the model that it names ({one_line(error)}); "
            "allowed: a checkpoint that priors.save wrote"
        ) from None
    return prior


def _argument(value: Any) -> Any:
    """An argument as it was before it became JSON; a tensor's values come with the weights."""
    if isinstance(value, dict):
        return torch.zeros(value["tensor"])
    return tuple(map(_argument, value)) if isinstance(value, list) else value
