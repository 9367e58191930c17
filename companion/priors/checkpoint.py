"""Checkpoints: safetensors files that hold a prior's weights, what builds it, and its model card. They run no code."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from companion import _support
from companion.priors.base import MODELS, Prior


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write tensors and JSON facts to `path` in one atomic step: a reader sees the old file or the whole new one.

    A process that is killed meanwhile leaves the old file, and a ``.part`` beside it, which the next writing replaces.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    # one field alone: the file format writes several in no fixed order, and equal content should give equal files
    facts = json.dumps({**about, "sha256": _digest(tensors, about)}, sort_keys=True)
    save_file(tensors, part, metadata={"about": facts})
    part.chmod(0o644)  # the format's writer lets only its owner read, but checkpoints are shared
    with part.open("rb") as handle:
        os.fsync(handle.fileno())
    part.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts of a file that :func:`write_tensors` wrote.

    Raises ValueError where the file is missing, is something else, or is not, byte for byte, what was written.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
        about = json.loads(metadata["about"])
        if not isinstance(about, dict) or about.pop("sha256", None) != _digest(tensors, about):
            raise ValueError("its checksum does not match its content")
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        reason = "no facts about the model in it" if isinstance(error, KeyError) else one_line(error)
        raise ValueError(
            f"checkpoint: got {path.name}, which is corrupt or no checkpoint of this package ({reason}); "
            "allowed: a file that this package wrote, unchanged"
        ) from None
    return tensors, about


def one_line(error: Exception, longest: int = 200) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())[:longest]


def _digest(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(prior: Prior, path: str | Path, card: dict[str, Any] | None = None) -> Path:
    """Write `prior` to a safetensors file, with its model card (data, licence, budget, scores) if there is one."""
    path = Path(path)
    if MODELS.get(type(prior).__name__) is not type(prior):
        raise ValueError(
            f"prior: got a {type(prior).__name__}, which load does not know; allowed: {', '.join(sorted(MODELS))}"
        )
    write_tensors(path, prior.state_dict(), {"model": type(prior).__name__, "config": prior.config, "card": card or {}})
    return path


def names() -> list[str]:
    """Names of the stored checkpoints."""
    return sorted(path.stem for path in (_support.store() / "checkpoints").glob("*.safetensors"))


def locate(name: str | Path) -> Path:
    """Path of a checkpoint given by its stored name or as a file."""
    if isinstance(name, Path) or str(name).endswith(".safetensors"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(
                f"prior: got {path.name}, and there is no such file; allowed: a checkpoint file or {', '.join(names())}"
            )
        return path
    _support.one_of("prior", name, names())
    return _support.store() / "checkpoints" / f"{name}.safetensors"


def load(name: str | Path, device: str | torch.device = "cpu") -> Any:
    """The prior stored under `name` (or in a file), frozen and in evaluation mode, in the dtype in which it was saved.

    Raises ValueError for an unknown name and for a corrupt file. Its model card is ``prior.card``.
    """
    path = locate(name)
    tensors, about = read_tensors(path)
    prior = build(path, about, tensors)
    prior.card = about.get("card", {})
    return prior.eval().requires_grad_(False).to(device)


def build(path: Path, about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    """The prior that the facts in `about` describe, with the weights in `tensors`; ValueError where they do not fit."""
    try:
        kind, config = about["model"], about["config"]
        _support.one_of("model", kind, MODELS)
        prior: Prior = MODELS[kind](**{name: _argument(value) for name, value in config.items()})
        dtypes = {t.dtype for t in tensors.values() if t.is_floating_point()}
        if len(dtypes) == 1:
            prior.to(dtypes.pop())
        prior.load_state_dict(tensors)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"checkpoint: got {path.name}, whose content does not fit the model that it names ({one_line(error)}); "
            "allowed: a checkpoint that priors.save wrote"
        ) from None
    return prior


def _argument(value: Any) -> Any:
    """An argument as it was before it became JSON; a tensor's values come with the weights."""
    if isinstance(value, dict):
        return torch.zeros(value["tensor"])
    return tuple(value) if isinstance(value, list) else value
