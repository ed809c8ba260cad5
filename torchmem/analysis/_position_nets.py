"""Decoders of position that are trained by gradient: a small network, and pRNN's and dreamerv3f's own."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from torchmem.analysis._position_data import PositionData
from torchmem.analysis._position_fit import Model
from torchmem.analysis._position_score import Guesses

HIDDEN, EPOCHS, BATCH, RATE, DECAY, PATIENCE = 128, 60, 256, 2e-3, 1e-2, 6
TAUS = (0.1, 0.2, 0.4, 0.7, 1.0)


def fit_mlp(x: Tensor, data: PositionData, guesses: Guesses, at: slice, seed: int) -> list[Model]:
    """One hidden layer of 128 ReLU units, for all sites and folds at once (AdamW on stacked weights).

    The fold after the one held out is for stopping: the weights that do best on it are kept, and it calibrates them.
    """
    grid, folds = data.grid, data.folds
    held = [*data.tested, -1]
    y = torch.as_tensor(grid.y, device=x.device)
    judge = [(f + 1) % folds for f in held]
    train = [np.flatnonzero((data.fold != f) & (data.fold != j)) for f, j in zip(held, judge)]
    test = [np.flatnonzero(data.fold == j) for j in judge]
    generator = torch.Generator().manual_seed(seed)
    s, g, d, k = len(x), len(held), x.shape[2], len(grid.cells)
    sizes = {"w1": (d, HIDDEN), "b1": (1, HIDDEN), "w2": (HIDDEN, k), "b2": (1, k)}
    weights = {}
    for name, size in sizes.items():
        scale = size[0] ** -0.5 if name[0] == "w" else 0.0
        draw = torch.randn(s, g, *size, generator=generator) * scale
        weights[name] = draw.to(x.device).requires_grad_()
    optimizer = torch.optim.AdamW(weights.values(), lr=RATE, weight_decay=DECAY)

    def forward(inputs: Tensor, w: dict[str, Tensor]) -> Tensor:
        """(S, G, n, D) -> (S, G, n, K)."""
        return (inputs @ w["w1"] + w["b1"]).relu() @ w["w2"] + w["b2"]

    def judged(w: dict[str, Tensor], tau: float = 1.0) -> Tensor:
        """(S, G) log loss where training stops."""
        with torch.no_grad():
            losses = []
            for i, rows in enumerate(test):
                one = {name: value[:, i : i + 1] for name, value in w.items()}
                log_p = torch.log_softmax(forward(x[:, None, rows], one)[:, 0] * tau, -1)
                losses.append(-log_p.gather(-1, y[rows].expand(s, -1)[..., None]).mean((1, 2)))
        return torch.stack(losses, 1)

    best = {name: value.detach().clone() for name, value in weights.items()}
    low = torch.full((s, g), torch.inf, device=x.device)
    stale = 0
    rounds = -(-max(map(len, train)) // BATCH)
    for _ in range(EPOCHS):
        orders = [torch.randperm(len(rows), generator=generator) for rows in train]
        for i in range(rounds):
            picked = [torch.as_tensor(rows)[order[torch.arange(i * BATCH, (i + 1) * BATCH) % len(rows)]]
                      for rows, order in zip(train, orders)]  # fmt: skip
            index = torch.stack(picked).to(x.device)  # (G, B)
            log_p = torch.log_softmax(forward(x[:, index], weights), -1)
            loss = -log_p.gather(-1, y[index].expand(s, -1, -1)[..., None]).mean((2, 3)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        now = judged(weights)
        better = now < low
        low = torch.where(better, now, low)
        for name, value in weights.items():
            best[name] = torch.where(better[..., None, None], value.detach(), best[name])
        stale = 0 if better.any() else stale + 1
        if stale == PATIENCE:
            break
    losses = torch.stack([judged(best, tau) for tau in TAUS])
    tau = torch.tensor(TAUS, device=x.device)[losses.argmin(0)]
    best["w2"], best["b2"] = (best[name] * tau[..., None, None] for name in ("w2", "b2"))
    for i, f in enumerate(data.tested):
        rows = np.flatnonzero(data.fold == f)
        one = {name: value[:, i : i + 1] for name, value in best.items()}
        p = torch.softmax(forward(x[:, None, rows], one)[:, 0], -1)
        guesses.note(rows, p, grid.cells, data.floor[rows], at)
    return [{name: value[i, -1].cpu().numpy() for name, value in best.items()} for i in range(s)]


@dataclasses.dataclass(frozen=True)
class Prnn:
    """Settings of the original decoder; the defaults are those of vviggyy/dreamerv3f.

    judged: share of the training rows that only decides when to stop (0: none). patience: checks, one every 100
    iterations, without an improvement of 0.001 tiles; at the default it never stops a run of 5,000, as in the original.
    """

    iterations: int = 5000
    rate: float = 1e-3
    decay: float = 0.3
    share: float = 0.75
    judged: float = 0.1
    patience: int = 500


def train_prnn(
    x: Tensor, place: Tensor, classes: int, settings: Prnn, seed: int, judge: tuple[Tensor, Tensor, int] | None = None
) -> Tensor:
    """(classes, D) weights: one linear layer without bias, AdamW on cross-entropy, of the last iteration.

    x: (n, D) as recorded. place: (n,) index x * H + y. Each iteration draws 75 % as many rows as there are, with
    replacement; a row drawn twice counts twice, and is computed once. judge: rows, places and H for early stopping.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = x.shape[1] ** -0.5  # torch.nn.Linear's own start
    weight = (torch.rand(classes, x.shape[1], generator=generator) * 2 - 1).mul_(bound).to(x.device).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=settings.rate, weight_decay=settings.decay)
    draws = int(settings.share * len(x))
    best, stale = np.inf, 0
    for step in range(1, settings.iterations + 1):
        drawn = torch.randint(len(x), (draws,), generator=generator)
        times = torch.bincount(drawn, minlength=len(x)).to(x.device)
        rows = times.nonzero()[:, 0]
        loss = functional.cross_entropy(x[rows] @ weight.T, place[rows], reduction="none") @ times[rows].to(x) / draws
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if judge is not None and step % 100 == 0:
            seen, truth, height = judge
            guess = (seen @ weight.detach().T).argmax(-1)
            off = (guess // height - truth // height).abs() + (guess % height - truth % height).abs()
            error = off.float().mean().item()
            stale, best = (0, error) if error < best - 1e-3 else (stale + 1, best)
            if stale >= settings.patience:
                break
    return weight.detach()


def fit_prnn(
    raw: list[np.ndarray], data: PositionData, guesses: Guesses, at: int, settings: Prnn, seed: int, device: str
) -> list[Model]:
    """The original procedure: one site and fold after the other, on activations as they are, over the whole grid."""
    grid = data.grid
    height, classes = grid.shape[1], grid.shape[0] * grid.shape[1]
    place = torch.as_tensor(grid.tile[:, 0] * height + grid.tile[:, 1], device=device)
    cells = np.stack(np.divmod(np.arange(classes), height), 1)
    models = []
    for s, values in enumerate(raw):
        x = torch.as_tensor(values.astype(np.float32), device=device)
        for f in (*data.tested, -1):
            rows, judge = np.flatnonzero(data.fold != f), None
            if settings.judged and f != -1:
                shuffled = np.random.RandomState(42 + f).permutation(rows)  # as the original draws them
                cut = int(settings.judged * len(rows))
                held, rows = shuffled[:cut], shuffled[cut:]
                judge = (x[held], place[held], height) if cut else None
            weight = train_prnn(x[rows], place[rows], classes, settings, seed + f, judge)
            if f == -1:
                models.append({"weight": weight.T.cpu().numpy()})
                break
            test = np.flatnonzero(data.fold == f)
            for part in np.array_split(test, 1 + len(test) * classes // 2**23):
                p = torch.softmax(x[part] @ weight.T, -1)
                guesses.note(part, p[None], cells, data.floor[part], slice(at + s, at + s + 1))
    return models
