"""Committed runs -> the README's table and figures: `python results/report.py` prints the one and writes the others.

A study is a folder of this one; each of its subfolders is one seed, with what the run itself wrote (config.json,
env_spec.json, metrics.jsonl) and `eval.json` from `torchmem eval RUN --episodes 200 --json eval.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent


def rows(study: Path) -> list[str]:
    """One table line per seed: numbers as they stand in the files, nothing averaged away."""
    lines = []
    for seed in sorted(p for p in study.iterdir() if (p / "metrics.jsonl").is_file()):
        last = [json.loads(line) for line in (seed / "metrics.jsonl").read_text().splitlines()][-1]
        scores = json.loads((seed / "eval.json").read_text())

        def interval(name: str, scores: dict = scores) -> str:
            score, low, high = (scores[f"{name}/score{end}"] for end in ("", "_low", "_high"))
            return f"{score:.3f} [{low:.3f}, {high:.3f}]"

        lines.append(
            f"| {study.name} | {seed.name} | {interval('eval')} | {interval('eval_no_memory')} | "
            f"{int(scores['eval/episodes'])} | {last['env_steps']:,} | {last['updates']:,} | "
            f"{last['wall_s'] / 60:.0f} |"
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
        save_plot(runs, HERE / f"{study.name}.png", "env_steps", ("eval/score", "eval_no_memory/score"))


if __name__ == "__main__":
    main()
