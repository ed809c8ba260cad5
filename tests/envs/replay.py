"""Plays a batched world and its gymnasium twins with the same actions and demands that everything is equal."""

from __future__ import annotations

import numpy as np
import torch

from torchmem.envs import make_env
from torchmem.envs.minigrid_geometry import LayoutEnv, best_actions
from torchmem.envs.minigrid_layouts import GridLayout
from torchmem.envs.tensor_world import TensorWorld

MOSTLY_FORWARD = (0.2, 0.2, 0.5, 0.025, 0.025, 0.025, 0.025)


def replay(name: str, kwargs: dict, n: int, steps: int, seed: int = 0, greedy: float = 0.0) -> dict[str, int]:
    """`steps` of `n` copies, auto-reset included. Returns how many transitions there were and how episodes ended.

    greedy: how often the best action is taken in place of a random one, so that far ends are reached.
    """
    batched = TensorWorld(name, kwargs, n, seed=seed)
    twins = [make_env(name, **kwargs) for _ in range(n)]
    rng = np.random.default_rng(seed)
    data, truth = batched.step(None)
    last = np.ones(n, bool)
    count = {"transitions": 0, "success": 0, "wrong": 0, "timeout": 0}
    actions = np.zeros(n, int)
    for _ in range(steps):
        assert data["is_first"].tolist() == last.tolist()
        episodes = batched.episodes() if last.any() else []
        rows = []
        for i, twin in enumerate(twins):
            if last[i]:
                seen, info = twin.reset(seed=i, options=episodes[i])
                reward, terminated, truncated = 0.0, False, False
            else:
                seen, reward, terminated, truncated, info = twin.step(int(actions[i]))
                count["transitions"] += 1
            last[i] = terminated or truncated
            rows.append({**seen, **info["truth"], "reward": np.float32(reward), "is_last": last[i].copy(),
                         "is_terminal": np.bool_(terminated)})
            if last[i]:
                count[("success", "wrong", "timeout")[int(info["truth"]["outcome"]) - 1]] += 1
        ours = {k: v.numpy() for k, v in (data | truth).items()}
        assert set(ours) == {*rows[0], "is_first"}
        for key in rows[0]:
            expected = np.stack([row[key] for row in rows])
            assert ours[key].dtype == expected.dtype, key
            np.testing.assert_array_equal(ours[key], expected, key)
        chances = np.array(MOSTLY_FORWARD[: batched.config.actions])
        actions = rng.choice(len(chances), n, p=chances / chances.sum())
        best = truth["optimal_actions"].numpy()
        clever = (rng.random(n) < greedy) & best.any(1)
        actions[clever] = best[clever].argmax(1)
        data, truth = batched.step({"action": torch.from_numpy(actions)})
    return count


def package_sightings(layout: GridLayout, view: int) -> dict[str, np.ndarray]:
    """From which poses each mark is seen, by the package's own occlusion: bool (size, size, 4), by its name."""
    env = LayoutEnv(lambda _: (layout, (*layout.success_cells[0], 0)), grid_size=layout.size, agent_view_size=view)
    env.reset(seed=0)
    standable = best_actions(layout)[0] >= 0
    for cell in layout.failure_cells:
        standable[cell] = True
    seen = {name: np.zeros(standable.shape, bool) for name in layout.marks()}
    for x, y, d in zip(*np.nonzero(standable), strict=True):
        env.place(int(x), int(y), int(d))
        _, mask = env.gen_obs_grid()
        for name, positions in layout.marks().items():
            spots = [env.relative_coords(*pos) for pos in positions]
            seen[name][x, y, d] = any(spot is not None and mask[int(spot[0]), int(spot[1])] for spot in spots)
    return seen
