"""What a self-test found: a list of claims, each with a number and the limit that it must keep."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Check:
    """One claim, measured. It holds where value <= limit; a limit of infinity marks a line to be read by a person.

    name: the claim. compared: what was compared with what. value: the number found, infinity where the comparison
    itself failed. detail: the first case that broke the claim, or what else to know.
    """

    name: str
    compared: str
    value: float
    limit: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.value <= self.limit  # False for NaN


@dataclasses.dataclass(frozen=True)
class Verification:
    """All checks of one agent in one world."""

    agent: str
    env: str
    checks: tuple[Check, ...]
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def failed(self) -> list[str]:
        """Names of the claims that do not hold."""
        return [check.name for check in self.checks if not check.ok]

    def summary(self) -> str:
        """One line per check: mark, claim, number against limit, what was compared; under it what else to know."""
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            mark = "FAILED" if not check.ok else "look  " if check.limit == math.inf and check.value else "ok    "
            number = f"{check.value:.3g}" + ("" if check.limit == math.inf else f" <= {check.limit:.3g}")
            number = number if check.ok else number.replace("<=", ">")
            lines.append(f"{mark}  {check.name:<{width}}  {number:<18}  {check.compared}")
            if check.detail:
                lines.append(f"{'':<{width + 30}}{check.detail}")
        failed = f"{len(self.failed)} failed: {', '.join(self.failed)}"
        end = f"all {len(self.checks)} checks hold" if self.ok else failed
        return "\n".join([*lines, "", f"agent={self.agent} env={self.env}: {end} ({self.seconds:.0f} s)"])

    def to_json(self) -> str:
        """Strict JSON: numbers that are not finite become null."""

        def number(value: float) -> float | None:
            return float(value) if math.isfinite(value) else None

        checks = [
            {**dataclasses.asdict(c), "value": number(c.value), "limit": number(c.limit), "ok": c.ok}
            for c in self.checks
        ]
        whole = {"agent": self.agent, "env": self.env, "ok": self.ok, "seconds": self.seconds, "checks": checks}
        return json.dumps(whole, indent=1, allow_nan=False)


def measured(name: str, compared: str, limit: float, look: Callable[[], tuple[float, str]]) -> Check:
    """The check that `look` answers with (value, detail). Code under test may raise anything: that fails the check."""
    try:
        value, detail = look()
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return Check(name, compared, math.inf, limit, f"{type(error).__name__}: {lines[-1].strip() if lines else ''}")
    return Check(name, compared, float(value), limit, detail)
