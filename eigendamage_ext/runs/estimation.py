"""The passes over the training data: one file of factors for all methods that need the same kind."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from eigendamage_ext._random import seeded
from eigendamage_ext.curvature.estimate import estimate_factors
from eigendamage_ext.curvature.factors import Factors
from eigendamage_ext.pruning.methods import METHODS
from eigendamage_ext.runs.settings import Way
from eigendamage_ext.runs.stages import Stage
from eigendamage_ext.runs.subject import Subject

SECOND_PASSES = {
    "moments": Factors.second_moments,
    "diagonal": Factors.diagonal,
    "gradient": Factors.gradients,
}
WORK, SECOND_WORK = 8, 5  # in passes of the network, about


def needs(way: Way) -> tuple[str, str] | None:
    """The kind of factors of a method and its second pass, "" for none; None if it needs nothing."""
    if way.scores == "ekfac":
        return "channel", "moments"
    needed = METHODS[way.method].needs
    if not needed:
        return None
    return ("channel", needed) if needed in SECOND_PASSES else (needed, "")


def factors_path(out: Path, way: Way) -> Path | None:
    """Where the factors of a method are."""
    needed = needs(way)
    return needed and out / f"factors{'-patch' if needed[0] == 'patch' else ''}.safetensors"


def stages(subject: Subject, out: Path, ways: Iterable[Way]) -> Iterator[Stage]:
    """The factors of several methods."""
    wanted: dict[Path, tuple[str, list[str]]] = {}
    for way in ways:
        needed, path = needs(way), factors_path(out, way)
        if needed and path:
            passes = wanted.setdefault(path, (needed[0], []))[1]
            if needed[1] and needed[1] not in passes:
                passes.append(needed[1])
    for path, (kind, passes) in wanted.items():
        work = (WORK + SECOND_WORK * len(passes)) * subject.work(subject.data.calibration)
        make = partial(_estimate, subject, path, kind, passes)
        yield Stage("patch factors" if kind == "patch" else "factors", path, work, make)


def _estimate(subject: Subject, path: Path, kind: str, passes: Iterable[str]) -> None:
    how, loader = subject.settings, subject.data.calibration
    with seeded(how.seed, subject.device):
        factors = estimate_factors(
            subject.model,
            loader,
            fisher=how.fisher,
            samples=how.samples,
            kind=kind,
            weight_sharing=how.weight_sharing,
            layers=how.layers,
            max_examples=how.max_examples,
            seed=how.seed,
            autocast=subject.autocast,
            offload=how.offload,
            progress=subject.progress,
        )
    for name in passes:
        with seeded(how.seed, subject.device):
            SECOND_PASSES[name](
                factors,
                subject.model,
                loader,
                max_examples=how.max_examples,
                offload=how.offload,
                progress=subject.progress,
            )
    factors.save(path)
