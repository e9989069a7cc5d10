"""Task weighting: a step's losses and gradients in, the weights (w_F, w_R) of the two tasks out.

What the tasks share (the common columns of all tables, and the biases where shared) steps along
w_F·g_F + w_R·g_R, the gradients of ranking's and rating's loss there. A loss method weights every
parameter so; with a gradient method one task's own parameters get that task's gradient as it is.

For two tasks the gradient methods are closed forms of the Gram matrix G = [[a, c], [c, b]], with
a = ‖g_F‖² = m², b = ‖g_R‖² = n², c = g_F·g_R = m·n·cos, D = a·b − c²; in the code squares = (a, b),
norms = (m, n) and product = c. If a gradient is zero the weights are equal.

A new method is a class with a name (see GLS and MGDA): nothing else has to know it. It stays on the
device (no .item(), no `if` on a tensor) and changes its state in place: a CUDA graph can hold it.

Shapes: (R, 2) for R runs and (ranking, rating), (R, 1) for what the tasks have in common.
"""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, get_origin, get_type_hints

import torch
from torch import Tensor

from models import random_stream

POSITIVE, NOT_NEGATIVE, BELOW_ONE = (1e-12, math.inf), (0.0, math.inf), (0.0, 1.0)
LOSS_FLOOR = 1e-8  # a loss below counts as this
NEAR = 1e-6  # gradients nearer to opposed, or to a cosine of 1, count as this near

METHODS: dict[str, type["Weighting"]] = {}  # by their names on the command line


class Weighting:
    """A method, for the R runs of the seeds; its parameters are its annotated attributes."""

    needs_gram = False  # else `weights` gets None
    needs_after = False  # whether `after` is to be called
    weights_own = True  # own parameters too, or with 1
    per_task_moments = False  # the optimizer keeps the tasks' moments apart
    moves = True
    starts: ClassVar[dict[str, tuple[int, float]]] = {}  # of the state: columns, first value

    def __init_subclass__(cls, name: str | None = None):
        if name:
            METHODS[name] = cls

    def __init__(self, seeds: Sequence[int | str], device: torch.device | str, **parameters):
        self.seeds, self.ones = list(seeds), torch.ones(len(seeds), 2, device=device)
        for name, value in parameters.items():
            setattr(self, name, value)
        self.state = {  # what a run goes on with, float64
            name: self.ones.new_full((len(seeds), columns), value, dtype=torch.float64)
            for name, (columns, value) in self.starts.items()
        }

    @classmethod
    def parameters(cls) -> dict[str, tuple[float, float, float]]:
        """Default, lowest value and the first too high one of each."""
        hints = get_type_hints(cls, include_extras=True).items()
        limits = {
            name: hint.__metadata__[1] for name, hint in hints if get_origin(hint) is Annotated
        }
        return {name: (getattr(cls, name), *pair) for name, pair in limits.items()}

    @torch.no_grad()
    def __call__(self, losses: Tensor, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(R, 2) and (R, 2, 2), or None -> weights of shared and of own parameters, (R, 2)."""
        gram = gram.double() if self.needs_gram else None
        shared = self.weights(losses.double(), gram).float()
        return shared, shared if self.weights_own else self.ones

    def weights(self, losses: Tensor, gram: Tensor | None) -> Tensor:
        """Those of the shared parameters, all in float64."""
        raise NotImplementedError

    def epoch_start(self, epoch: int, steps: int) -> None: ...

    def epoch_end(self, epoch: int, means: Tensor) -> None:
        """Takes the epoch's mean losses, (R, 2)."""

    def after(self, losses: Tensor) -> None:
        """Takes the losses of the same batch after the step, (R, 2)."""


# ---- weights that don't move ---------------------------------------------------------------


class Constant(Weighting):
    pair, moves = (1.0, 1.0), False

    def weights(self, losses, gram):
        return self.ones.double() * torch.tensor(self.pair, device=self.ones.device)


class Fixed(Constant, name="fixed"):
    """w = (λ_F, λ_R), of each run its own."""

    lambdas: Tensor

    def weights(self, losses, gram):
        return self.lambdas.to(losses)


class RatingProbe(Constant, name="rating-probe"):
    """w = (1, 0): the rating head reads what ranking alone shapes."""

    pair, weights_own = (1.0, 0.0), False


class RankingProbe(Constant, name="ranking-probe"):
    """w = (0, 1): ranking reads what rating alone shapes."""

    pair, weights_own = (0.0, 1.0), False


class AdaTask(Constant, name="adatask"):
    """w = (1, 1), each task with Adam moments of its own. Yang et al., AAAI 2023."""

    per_task_moments = True


# ---- by the losses -------------------------------------------------------------------------


class GLS(Weighting, name="gls"):
    """w_i = ½·√(L_F·L_R) / L_i, the gradient of √(L_F·L_R). Chennupati et al., CVPRW 2019."""

    def weights(self, losses, gram):
        losses = losses.clamp(min=LOSS_FLOOR)
        return (losses.flip(1) / losses).sqrt() / 2


class DWA(Weighting, name="dwa"):
    """w = 2·softmax(r / T), r_i = L_i(e − 1) / L_i(e − 2) of epoch means, at first (1, 1).

    Liu et al., End-to-End Multi-Task Learning with Attention, CVPR 2019.
    """

    temperature: Annotated[float, "T", POSITIVE] = 2.0
    starts = {"w": (2, 1.0), "last": (2, 0.0)}

    def weights(self, losses, gram):
        return self.state["w"]

    def epoch_end(self, epoch, means):
        if epoch > 0:
            rates = means / self.state["last"].clamp(min=LOSS_FLOOR)
            self.state["w"].copy_(2 * (rates / self.temperature).softmax(1))
        self.state["last"].copy_(means)


class RLW(Weighting, name="rlw"):
    """w = softmax(x), x from N(0, I) at each step. Lin et al., TMLR 2022."""

    starts = {"step": (1, 0.0)}
    drawn: Tensor | None = None  # (R, steps, 2), the epoch's weights

    def epoch_start(self, epoch, steps):
        streams = [random_stream(seed, "weights", epoch) for seed in self.seeds]
        normals = torch.stack([torch.randn(steps, 2, generator=stream) for stream in streams])
        drawn = normals.double().softmax(-1).to(self.ones.device)
        self.drawn = drawn if self.drawn is None else self.drawn.copy_(drawn)
        self.state["step"].zero_()

    def weights(self, losses, gram):
        if self.drawn is None:  # no epoch has begun
            return self.ones.double() / 2
        step = self.state["step"]
        at = step.clamp(max=self.drawn.shape[1] - 1).long()[..., None].expand(-1, 1, 2)
        step.add_(1)
        return self.drawn.gather(1, at).squeeze(1)


class Learned(Weighting):
    """Methods with numbers s = (s_F, s_R) that they learn by an Adam of their own."""

    lr: Annotated[float, "rate of s", POSITIVE] = 1e-3
    starts = {"s": (2, 0.0), "mean": (2, 0.0), "square": (2, 0.0), "steps": (1, 0.0)}

    def descend(self, slope: Tensor, moving: Tensor | float = 1.0) -> None:
        """A step of torch.optim.Adam on s, or where moving is 0, with a slope of 0, none."""
        s, mean, square, steps = (self.state[name] for name in Learned.starts)
        steps.add_(moving)
        mean.lerp_(slope, 1 - 0.9)
        square.lerp_(slope.square(), 1 - 0.999)
        made = steps.clamp(min=1)
        size = (square / (1 - 0.999**made)).sqrt() + 1e-8
        s.sub_(self.lr * mean / (1 - 0.9**made) / size)


def through_softmax(z: Tensor, slope: Tensor) -> Tensor:
    """A slope in z = softmax(s) as one in s."""
    return z * (slope - (z * slope).sum(1, keepdim=True))


class UW(Learned, name="uw"):
    """w_i = e^{−s_i} / 2, s descends Σ L_i·e^{−s_i}/2 + s_i/2 to e^{s_i} = L_i.

    Kendall et al., Multi-Task Learning Using Uncertainty, CVPR 2018; start as in LibMTL.
    """

    starts = {**Learned.starts, "s": (2, -0.5)}

    def weights(self, losses, gram):
        weights = (-self.state["s"]).exp() / 2
        self.descend(0.5 - losses * weights)
        return weights


class IMTLL(Learned, name="imtl-l"):
    """w_i = e^{s_i}, s descends Σ e^{s_i}·L_i − s_i to e^{s_i} = 1 / L_i. Liu et al., ICLR 2021."""

    def weights(self, losses, gram):
        weights = self.state["s"].exp()
        self.descend(losses * weights - 1)
        return weights


class FAMO(Learned, name="famo"):
    """w_i = (z_i / L_i) / Σ_k z_k / L_k, z = softmax(s), so that the log-losses fall at one rate.

    After the step s descends Σ z_i·δ_i + decay·‖s‖²/2, δ_i the fall of log L_i in that step.
    Liu et al., FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023.
    """

    needs_after, lr = True, 0.025
    decay: Annotated[float, "weight decay of s", NOT_NEGATIVE] = 1e-3
    starts = {**Learned.starts, "before": (2, 1.0)}

    def weights(self, losses, gram):
        losses = self.state["before"].copy_(losses.clamp(min=LOSS_FLOOR))
        weights = self.state["s"].softmax(1) / losses
        return weights / weights.sum(1, keepdim=True)

    def after(self, losses):
        s = self.state["s"]
        fall = self.state["before"].log() - losses.clamp(min=LOSS_FLOOR).log()
        self.descend(through_softmax(s.softmax(1), fall) + self.decay * s)


# ---- by the gradients ----------------------------------------------------------------------


class GradNorm(Learned, name="gradnorm"):
    """w = 2z = 2·softmax(s), s descends Σ |w_i·‖g_i‖ − Ḡ·r_i^α|, Ḡ·r_i^α taken as constant.

    Ḡ: mean of the two w_i·‖g_i‖. r_i: L_i / L_i(0) over its mean of the two, L_i(0) the mean of the
    first epoch, which has w = (1, 1), as in LibMTL. Chen et al., GradNorm, ICML 2018.
    """

    needs_gram, weights_own = True, False
    alpha: Annotated[float, "how hard to pull at the slower task", NOT_NEGATIVE] = 1.5
    starts = {**Learned.starts, "first": (2, 0.0)}

    def weights(self, losses, gram):
        z, first = self.state["s"].softmax(1), self.state["first"]
        norms = gram.diagonal(dim1=1, dim2=2).sqrt()
        relative = losses / first.clamp(min=LOSS_FLOOR)
        relative = relative / relative.mean(1, keepdim=True).clamp(min=LOSS_FLOOR)
        target = (z * norms).sum(1, keepdim=True) * relative**self.alpha
        slope = through_softmax(z, 2 * norms * (2 * z * norms - target).sign())
        begun = (first > 0).all(1, keepdim=True).double()
        self.descend(begun * slope, begun)
        return 2 * z

    def epoch_end(self, epoch, means):
        if epoch == 0:
            self.state["first"].copy_(means)


class OfGram(Weighting):
    """Methods with a closed form, ``form(squares, product)`` -> (R, 2)."""

    needs_gram, weights_own = True, False
    equal = 1.0  # both weights where a gradient is zero

    def weights(self, losses, gram):
        squares, product = gram.diagonal(dim1=1, dim2=2), gram[:, :1, 1]
        pulling = (squares > 0).all(1, keepdim=True)
        return torch.where(pulling, self.form(squares, product), self.equal)


def cosine(norms: Tensor, product: Tensor) -> Tensor:
    return (product / norms.prod(1, keepdim=True).clamp(min=1e-100)).clamp(-1, 1)


class MGDA(OfGram, name="mgda"):
    """w_F = (b − c) / (a + b − 2c) in [0, 1], w_R = 1 − w_F, no cap: the shortest step.

    Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018.
    """

    def form(self, squares, product):
        parts = squares.flip(1) - product
        apart = parts.sum(1, keepdim=True)  # ‖g_F − g_R‖²
        return torch.where(apart > 0, (parts / apart).clamp(0, 1), 0.5)


class PCGrad(OfGram, name="pcgrad"):
    """w = (1 − c⁻/a, 1 − c⁻/b), c⁻ = min(c, 0): each gradient less its part against the other.

    Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020.
    """

    def form(self, squares, product):
        return self.equal * (1 - product.clamp(max=0) / squares)


class UPGrad(PCGrad, name="upgrad"):
    """Half of PCGrad's, the mean of the two projections on the dual cone. Quinton, Rey, 2024."""

    equal = 0.5


class GradVac(OfGram, name="gradvac"):
    """w_F = 1 + k·n/m, w_R = 1 + k·m/n if cos < φ: both gradients turned to a cosine of φ.

    k = φ·√((1 − cos²) / (1 − φ²)) − cos; then φ, at first 0, becomes (1 − β)·φ + β·cos.
    Wang et al., Gradient Vaccine, ICLR 2021.
    """

    beta: Annotated[float, "β, how fast φ follows", BELOW_ONE] = 0.5
    starts = {"phi": (1, 0.0)}

    def form(self, squares, product):
        norms, phi = squares.sqrt(), self.state["phi"].clamp(NEAR - 1, 1 - NEAR)
        cos = cosine(norms, product)
        turn = phi * ((1 - cos.square()) / (1 - phi.square())).sqrt() - cos
        self.state["phi"].lerp_(cos, self.beta)
        return 1 + torch.where(cos < phi, turn, 0.0) * norms.flip(1) / norms


class CAGrad(OfGram, name="cagrad"):
    """w = ½ + s·(v, 1 − v) / ‖g_v‖, s = κ·‖ḡ‖: the best step for the worse task, s from the mean ḡ.

    g_v = v·g_F + (1 − v)·g_R with the v in [0, 1] of least ḡ·g_v + s·‖g_v‖: for p = (b − a)/2 and
    A = a + b − 2c, t = A·v + c − b is p·√(D / E), E = κ²·D − (1 − κ²)·p², infinite if E ≤ 0; and
    ‖ḡ‖ / ‖g_v‖ is √((D + p²) / (D + t²)).
    Liu et al., Conflict-Averse Gradient Descent, NeurIPS 2021, not divided by LibMTL's 1 + κ².
    """

    equal = 0.5
    kappa: Annotated[float, "κ, the distance from the mean over its norm", BELOW_ONE] = 0.5

    def form(self, squares, product):  # in few operations: so small, they cost as much as large
        (a, b), above = squares.split(1, 1), self.kappa**2
        parts, p = squares.flip(1) - product, b - a  # b − c and a − c, and twice p
        apart, low, high = parts.sum(1, keepdim=True), *parts.split(1, 1)
        square = torch.addcmul(a * b, product, product, value=-1).clamp_(min=1e-300)  # D
        edge = torch.addcmul(square * (4 * above), p, p, value=above - 1).clamp_(min=0)  # 4 E
        t = (square / edge).sqrt_().mul_(p)
        t = t.fmax(-low).fmin(high)  # NaN where p = κ = 0: any v will do
        floor = squares.amin(1, keepdim=True) * (apart * NEAR**2)  # opposed gradients meet at zero
        reach = torch.addcmul(square, t, t).maximum(floor)
        factor = torch.addcmul(square, p, p, value=0.25).div_(reach).sqrt_().div_(apart)
        weights = torch.cat([low + t, high - t], 1).mul_(factor)
        return self.kappa * torch.where(apart > 0, weights, 0.5) + 0.5


class NashMTL(OfGram, name="nash-mtl"):
    """w = (1/m, 1/n) / √(1 + cos), which solves G·w = 1/w. A zero norm counts as the other one.

    Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022.
    """

    def weights(self, losses, gram):
        norms = gram.diagonal(dim1=1, dim2=2).sqrt()
        norms = torch.where(norms > 0, norms, norms.flip(1))
        norms = torch.where(norms > 0, norms, 1.0)
        return 1 / norms / (1 + cosine(norms, gram[:, :1, 1])).clamp(min=NEAR).sqrt()


class IMTLG(OfGram, name="imtl-g"):
    """w = (n, m) / (m + n), equal projections on both directions. Liu et al., ICLR 2021."""

    def form(self, squares, product):
        return squares.flip(1).sqrt() / squares.sqrt().sum(1, keepdim=True)


class AlignedMTL(OfGram, name="aligned-mtl"):
    """w = √λ_min·G^{−1/2}·1 = (b + √D − c, a + √D − c) / √(λ_max·(a + b + 2√D)), λ of G.

    If λ_min ≤ 2ε·λ_max, ε float32's, its direction is dropped, as in the sources:
    w = (a + c − λ_min, b + c − λ_min) / (λ_max − λ_min).
    Senushkin et al., Independent Component Alignment for Multi-Task Learning, CVPR 2023.
    """

    def form(self, squares, product):
        trace = squares.sum(1, keepdim=True)
        square = squares.prod(1, keepdim=True) - product.square()  # D, may round to below 0
        largest = trace / 2 + (squares.diff(dim=1).square() / 4 + product.square()).sqrt()
        least, root = square / largest, square.sqrt()
        full = (squares.flip(1) + root - product) / (largest * (trace + 2 * root)).sqrt()
        kept = least > 2 * torch.finfo(torch.float32).eps * largest
        return torch.where(kept, full, (squares + product - least) / (largest - least))


# ---- the runs of a stack -------------------------------------------------------------------


def nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, 1)
    return f"did you mean {close[0]}?" if close else f"it is one of {', '.join(known)}"


def parse(text: str) -> tuple[str, dict[str, float]]:
    """'famo:lr=0.01' -> ('famo', {'lr': 0.01, 'decay': 0.001}), all parameters of the method.

    Raises ValueError for a method, a parameter or a value that isn't one.
    """
    name, colon, rest = text.partition(":")
    if name not in METHODS:
        raise ValueError(f"weighting {text!r} names no method: {nearest(name, METHODS)}")
    known = METHODS[name].parameters()
    settings = {key: default for key, (default, *_) in known.items()}
    for part in rest.split(",") if colon else ():
        key, _, number = part.partition("=")
        if key not in known:
            wanted = nearest(key, known) if known else "it takes none"
            raise ValueError(f"weighting {text!r}: {name} has no parameter {key!r}: {wanted}")
        _, low, high = known[key]
        try:
            settings[key] = float(number)
        except ValueError:
            settings[key] = math.nan
        if not low <= settings[key] < high:
            limits = f"at least {low:g}" + (f" and below {high:g}" if high < math.inf else "")
            raise ValueError(f"weighting {text!r}: {key} must be a number of {limits}")
    return name, settings


def goes_apart(kind: type[Weighting]) -> bool:
    """Whether the tasks' gradients are needed apart: else one weighted sum of the losses serves."""
    return kind.per_task_moments or kind.needs_gram or not kind.weights_own


class Weightings:
    """The weighting of each run of a stack: runs of one method and equal parameters go together.

    Args:
        methods: (R,), as ``parse`` takes them.
        seeds: (R,) keys of the random streams.
        lambdas: (R, 2), of which the rows of ``fixed`` are read.

    Raises ValueError as ``parse`` does.
    """

    def __init__(self, methods: Sequence[str], seeds: Sequence[int | str], device, lambdas=None):
        self.shared = torch.ones(len(seeds), 2, device=device)  # where weights don't move
        self.own, parsed = self.shared.clone(), [parse(text) for text in methods]
        self.groups: list[tuple[Weighting, Tensor | None]] = []  # with its runs; None: all
        alike: dict[str, list[int]] = {}
        for r, each in enumerate(parsed):
            alike.setdefault(str(each), []).append(r)
        for runs in alike.values():
            name, settings = parsed[runs[0]]
            if name == "fixed":
                settings = {"lambdas": torch.as_tensor(lambdas)[runs]}
            group = METHODS[name]([seeds[r] for r in runs], device, **settings)
            group.told = methods[runs[0]]
            index = torch.tensor(runs, device=device)
            if group.moves:
                self.groups.append((group, index if len(alike) > 1 else None))
            else:
                self.shared[index], self.own[index] = group(group.ones)
        kinds = [METHODS[name] for name, _ in parsed]
        split, apart = [kind.per_task_moments for kind in kinds], [*map(goes_apart, kinds)]
        self.split, self.per_task_moments = any(split), torch.tensor(split, device=device)
        self.apart, self.takes_apart = any(apart), torch.tensor(apart, device=device)
        self.needs_after = any(kind.needs_after for kind in kinds)
        self.log_for(methods)
        self.weighs_own = any(kind.weights_own for kind in kinds)

    def log_for(self, methods: Iterable[str]) -> None:
        """What to log: weights if one of the methods moves them, the first batch's gradients too
        unless all methods take the tasks' gradients apart, or none has anything to tell."""
        kinds = [METHODS[parse(text)[0]] for text in methods]
        self.moves, apart = any(kind.moves for kind in kinds), [*map(goes_apart, kinds)]
        self.measures_first = (self.moves or any(apart)) and not all(apart)

    def by_losses(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Once a step, (R, 2) -> weights of shared and of own parameters, (R, 2).

        The shared weights of gradient methods are 1 as yet.
        """
        shared, own = self.shared, self.own
        for group, index in self.groups:
            if not group.needs_gram:
                common, others = group(rows(losses, index))
                shared, own = placed(shared, index, common), placed(own, index, others)
        return shared, own

    def by_gradients(self, shared: Tensor, losses: Tensor, gram: Tensor | None) -> Tensor:
        """Then, with Gram matrices (R, 2, 2): all shared weights, from the first ones.

        The Gram matrices of runs that don't need one are not read.
        """
        for group, index in self.groups:
            if group.needs_gram:
                weights, _ = group(rows(losses, index), rows(gram, index))
                shared = placed(shared, index, weights)
        return shared

    def epoch_start(self, epoch: int, steps: int) -> None:
        for group, _ in self.groups:
            group.epoch_start(epoch, steps)

    def epoch_end(self, epoch: int, means: Tensor) -> None:
        """With the runs' mean losses over the epoch, (R, 2)."""
        for group, index in self.groups:
            group.epoch_end(epoch, rows(means.to(self.shared.device).double(), index))

    @torch.no_grad()
    def after(self, losses: Tensor) -> None:
        """Where ``needs_after``: with the losses of the step's batch after the step, (R, 2)."""
        for group, index in self.groups:
            if group.needs_after:
                group.after(rows(losses.double(), index))

    def state_dict(self) -> dict[str, Tensor]:
        """By method and name, (R, ...) each, zero in the runs of other methods."""
        state = {}
        for group, index in self.groups:
            for part, x in group.state.items():
                if index is not None:
                    x = x.new_zeros(len(self.shared), *x.shape[1:]).index_copy(0, index, x)
                state[f"{part} of {group.told}"] = x
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for group, index in self.groups:
            for part, x in group.state.items():
                x.copy_(rows(state[f"{part} of {group.told}"], index))


def rows(tensor: Tensor, index: Tensor | None) -> Tensor:
    return tensor if index is None else tensor.index_select(0, index)


def placed(whole: Tensor, index: Tensor | None, part: Tensor) -> Tensor:
    return part if index is None else whole.index_copy(0, index, part)
