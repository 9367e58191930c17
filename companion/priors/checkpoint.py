"""Checkpoints: safetensors files that hold a prior's weights, what builds it, and its model card. They cannot run code."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from companion import _support
from companion.priors.base import Prior


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write tensors and JSON facts to `path` in one atomic step: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    save_file(tensors, part, metadata={"about": json.dumps(about, sort_keys=True)})
    with part.open("rb") as handle:
        os.fsync(handle.fileno())
    part.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts of a file that :func:`write_tensors` wrote; ValueError where it is corrupt or something else."""
    try:
        with safe_open(path, framework="pt") as handle:
            about = json.loads((handle.metadata() or {})["about"])
            return {name: handle.get_tensor(name) for name in handle.keys()}, about  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"checkpoint: {path.name} is corrupt or no checkpoint of this package ({error})") from None


def save(prior: Prior, path: str | Path, card: dict[str, Any] | None = None) -> Path:
    """Write `prior` to a safetensors file, with the model card `card` (data, licence, budget, scores) if one is given."""
    path = Path(path)
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
    """The prior stored under `name` (or in a file), frozen and in evaluation mode.

    Raises ValueError for an unknown name and for a corrupt file. Its model card is ``prior.card``.
    """
    from companion import priors

    path = locate(name)
    tensors, about = read_tensors(path)
    try:
        kind, config = about["model"], about["config"]
        _support.one_of("model", kind, priors.MODELS)
        prior: Prior = priors.MODELS[kind](**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
        prior.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"checkpoint: {path.name} does not fit the model that it names ({first})") from None
    prior.card = about.get("card", {})
    return prior.eval().requires_grad_(False).to(device)
