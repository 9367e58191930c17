"""The same Glow in four libraries: K steps in each of L levels, affine couplings, 3×3 → 1×1 → 3×3 conditioners."""

import importlib.util
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

LEVELS, WIDTH, SHAPE = 3, 128, (3, 32, 32)


class Model(nn.Module, ABC):
    """What is timed: a density of images, and images from flat latents."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor: ...


class Companion(Model):
    """This package's Glow; with `memory_saving`, activations are rebuilt in the backward pass."""

    def __init__(self, steps: int, memory_saving: bool = False) -> None:
        super().__init__()
        # here, so that the processes of the other libraries are as they are without it
        from companion import _support, priors

        _support.keep_freed_memory()
        flow = priors.Glow(SHAPE, LEVELS, steps, WIDTH)
        self.flow = priors.memory_saving(flow) if memory_saving else flow

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.flow.decode(z)


def _conditioner(inputs: int, outputs: int) -> nn.Module:
    """The layers of our conditioner as a user of another library writes them."""
    return nn.Sequential(
        nn.Conv2d(inputs, WIDTH, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(WIDTH, WIDTH, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(WIDTH, outputs, 3, padding=1),
    )


def _level_shapes() -> list[tuple[int, int, int]]:
    """Shape inside each level, finest first."""
    channels, height, width = SHAPE
    return [(channels * 4 * 2**level, height // 2 ** (level + 1), width // 2 ** (level + 1)) for level in range(LEVELS)]


class Normflows(Model):
    """normflows' GlowBlock (LU-decomposed 1×1 convolution)."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        import normflows as nf

        bases, flows = [], []
        shapes = list(reversed(_level_shapes()))
        for i, (channels, height, width) in enumerate(shapes):
            flows.append([*(nf.flows.GlowBlock(channels, WIDTH) for _ in range(steps)), nf.flows.Squeeze()])
            kept = channels if i == 0 else channels // 2
            bases.append(nf.distributions.DiagGaussian((kept, height, width), trainable=False))
        self.kept = [base.shape for base in bases]
        merges = [nf.flows.Merge() for _ in shapes[1:]]
        self.flow = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x, None)

    def decode(self, z: Tensor) -> Tensor:
        parts = z.split([torch.Size(shape).numel() for shape in self.kept], 1)
        latents = [part.view(-1, *shape) for part, shape in zip(parts, self.kept, strict=True)]
        return self.flow.forward_and_log_det(latents)[0]


class _NflowsConditioner(nn.Module):
    """nflows passes a context to its conditioners."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = _conditioner(inputs, outputs)

    def forward(self, fixed: Tensor, context: None = None) -> Tensor:
        return self.layers(fixed)


class Nflows(Model):
    """nflows' transforms (LU-decomposed 1×1 convolution)."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        from nflows import distributions, flows, transforms

        chain = transforms.MultiscaleCompositeTransform(LEVELS)
        for channels, height, width in _level_shapes():
            parts = [transforms.SqueezeTransform()]
            for _ in range(steps):
                mask = (torch.arange(channels) >= channels // 2).long()
                parts += [transforms.ActNorm(channels), transforms.OneByOneConvolution(channels)]
                parts.append(transforms.AffineCouplingTransform(mask, _NflowsConditioner))
            chain.add_transform(transforms.CompositeTransform(parts), (channels, height, width))
        base = distributions.StandardNormal([torch.Size(SHAPE).numel()])
        self.flow = flows.Flow(chain, base)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.flow._transform.inverse(z)[0]


class Freia(Model):
    """FrEIA's AllInOneBlock (1×1 convolution by a fixed, not learned, rotation)."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        import FrEIA.framework as ff
        import FrEIA.modules as fm

        block = {"subnet_constructor": _conditioner, "permute_soft": True}
        node = ff.InputNode(*SHAPE)
        nodes, ends = [node], []
        for level, (channels, _, _) in enumerate(_level_shapes()):
            node = ff.Node(node, fm.IRevNetDownsampling, {})
            nodes.append(node)
            for _ in range(steps):
                node = ff.Node(node, fm.AllInOneBlock, block)
                nodes.append(node)
            if level < LEVELS - 1:
                node = ff.Node(node, fm.Split, {"section_sizes": [channels // 2, channels // 2], "dim": 0})
                nodes.append(node)
                ends.append(ff.Node(node.out1, fm.Flatten, {}))
            else:
                ends.append(ff.Node(node, fm.Flatten, {}))
        nodes += ends
        joined = ff.Node([end.out0 for end in ends], fm.Concat1d, {})
        nodes += [joined, ff.OutputNode(joined)]
        self.flow = ff.GraphINN(nodes, verbose=False)

    def log_prob(self, x: Tensor) -> Tensor:
        z, log_det = self.flow(x)
        return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + log_det

    def decode(self, z: Tensor) -> Tensor:
        return self.flow(z, rev=True)[0]


PEERS: dict[str, type[Model]] = {"normflows": Normflows, "nflows": Nflows, "FrEIA": Freia}


LIBRARIES: dict[str, type[Model]] = {"companion": Companion, **PEERS}


def installed() -> list[str]:
    """Ours, and every peer that can be imported."""
    return ["companion", *(name for name in PEERS if importlib.util.find_spec(name))]


def build(library: str, steps: int) -> Model:
    """The Glow of `library`, set from one batch where it normalises by data."""
    torch.manual_seed(0)
    model = LIBRARIES[library](steps)
    with torch.no_grad():
        model.log_prob(torch.rand(16, *SHAPE))
    for parameter in model.parameters():  # couplings start as the identity: no zero may ease the work
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    return model.eval()
