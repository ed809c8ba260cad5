"""Committed runs -> the README's table and figures: `python results/report.py` prints the one and writes the others.

A study is a folder of this one; each of its subfolders is one seed, with what the run itself wrote (config.json,
env_spec.json, metrics.jsonl) and `eval.json` from `torchmem eval RUN --episodes 200 --json eval.json`, unless the run
ended with episodes enough.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent


def rows(study: Path) -> list[str]:
    """One table line per seed: numbers as they stand in the files, nothing averaged away."""
    lines = []
    for seed in sorted(p for p in study.iterdir() if (p / "metrics.jsonl").is_file()):
        written = [json.loads(line) for line in (seed / "metrics.jsonl").read_text().splitlines()]
        last, apart = written[-1], seed / "eval.json"
        # without an evaluation apart, the one that ended the run
        scores = json.loads(apart.read_text()) if apart.is_file() else {k: v for row in written for k, v in row.items()}

        def interval(name: str, scores: dict = scores) -> str:
            score, low, high = (scores[f"{name}/score{end}"] for end in ("", "_low", "_high"))
            return f"{score:.3f} [{low:.3f}, {high:.3f}]"

        lines.append(
            f"| {study.name} | {seed.name} | {interval('eval')} | {interval('eval_no_memory')} | "
            f"{int(scores['eval/episodes'])} | {last['env_steps']:,} | {last['updates']:,} | "
            f"{last['wall_s'] / 60:.1f} |"
        )
    return lines


def main() -> None:
    from torchmem.training.plot import save_plot

    print("| study | seed | score [95 %] | carry reset every step | episodes | env steps | updates | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    for study in sorted(p for p in HERE.iterdir() if p.is_dir()):
        for line in rows(study):
            print(line)
        runs = sorted(str(p) for p in study.iterdir() if (p / "metrics.jsonl").is_file())
        if not runs:  # a measurement on agents of other studies
            continue
        # PPO is evaluated at its end only: its curve is the return of training episodes
        several = json.loads((Path(runs[0]) / "config.json").read_text())["agent"]["name"] != "ppo"
        drawn = ("eval/score", "eval_no_memory/score") if several else ("episode/return",)
        save_plot(runs, HERE / f"{study.name}.png", "env_steps", drawn)


if __name__ == "__main__":
    main()
