"""The folder of a study: finished parts are read back, the rest is done, and in the end there is one page to read.

    folder/study.json        which study, on which weights, with which settings
    folder/<part>/           a saved Result: result.json, arrays.npz, figure.png
    folder/<part>.csv        its table, where it has one
    folder/report.html       everything, in order
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchmem.errors import TorchmemError
from torchmem.files import atomic_write
from torchmem.report import write_report
from torchmem.result import CARD, Provenance, Result, load_result

log = logging.getLogger("torchmem")


class StudyError(TorchmemError):
    """A study cannot go on in a folder; the message says why and what to do."""


class StudyFolder:
    """Parts of one study. `settings`: JSON values that decide what the parts hold; other ones mean another study."""

    def __init__(self, path: str | Path, study: str, settings: Mapping[str, Any]) -> None:
        self.path, self.study, self.settings = Path(path), study, settings
        card = {"study": study, **json.loads(json.dumps(settings))}
        file = self.path / "study.json"
        if file.is_file():
            if unlike := differences(json.loads(file.read_text()), card):
                raise StudyError(f"{self.path} holds another study ({unlike}): choose another folder")
        elif self.path.exists() and any(self.path.iterdir()):
            raise StudyError(f"{self.path} holds something that is no study: choose another folder")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            atomic_write(file, (json.dumps(card, indent=1) + "\n").encode())
        self.parts: dict[str, Result] = {}

    def part(self, name: str, make: Callable[[], Result]) -> Result:
        """The result of that name: read where an earlier run has finished it, else made and written."""
        home = self.path / name
        if (home / CARD).is_file():
            log.info("%s: %s is there already", self.study, name)
            found = load_result(home)
        else:
            log.info("%s: %s", self.study, name)
            found = make()
            found.save(home)
        self.parts[name] = found
        if hasattr(found, "table"):
            write_csv(self.path / f"{name}.csv", found.table())  # type: ignore[attr-defined]
        return found

    def provenance(self, model: Any, seeds: Mapping[str, int]) -> Provenance:
        """Of what this study makes of one `model`. The settings must hold the hash of its weights."""
        return Provenance.here(
            checkpoint=str(model.path) if model.path else None, weights=self.settings["weights"],
            config={k: v for k, v in self.settings.items() if k != "weights"}, seeds=dict(seeds),
            edits=tuple(e.describe() for e in model.edits), caveats=model.caveats,
        )  # fmt: skip

    def report(self, title: str, intro: str, headings: Mapping[str, str], notes: Mapping[str, str]) -> Path:
        """report.html. headings: part -> its heading, in the order of the page. notes: part -> what it means."""
        shown = {heading: self.parts[name] for name, heading in headings.items() if name in self.parts}
        told = {headings[name]: text for name, text in notes.items() if name in headings}
        return write_report(self.path / "report.html", title, shown, intro, told)


def differences(found: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """In which keys what stands in a folder and what is asked for differ, as text; "" where they are equal."""
    unlike = sorted(k for k in found.keys() | card.keys() if found.get(k) != card.get(k))
    return "; ".join(f"{k} was {found.get(k)!r}, is {card.get(k)!r}" for k in unlike)


def write_csv(path: Path, table: Mapping[str, list]) -> Path:
    """Columns of one length as a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return atomic_write(path, text.getvalue().encode())
