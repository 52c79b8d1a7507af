"""Which budgets can be met, told before anything is estimated: costs depend on shapes alone."""

import torch

from eigendamage_ext.curvature.factors import Factors, LayerFactors
from eigendamage_ext.curvature.layers import LayerSpec, select
from eigendamage_ext.curvature.moments import factor_shapes
from eigendamage_ext.curvature.settings import FactorSettings
from eigendamage_ext.pruning.allocation import UnreachableError
from eigendamage_ext.pruning.methods import METHODS
from eigendamage_ext.pruning.methods.directions import DirectionMethod
from eigendamage_ext.runs.settings import Goal, Way
from eigendamage_ext.runs.subject import Subject, planned


def obstacle(subject: Subject, goal: Goal, way: Way) -> UnreachableError | None:
    """Why a budget cannot be met; None if it can, or if only the data will tell.

    Layers are taken to have factors that will have none, so what is refused here would be refused later.
    """
    directions = isinstance(METHODS[way.method], DirectionMethod)
    # Of all that cuts filters, the method random costs the same and needs nothing.
    stand_in = Way(way.method) if directions else Way("random")
    try:
        planned(subject, unit_factors(subject) if directions else None, goal, stand_in)
    except UnreachableError as error:
        return error
    return None


def briefly(error: UnreachableError) -> str:
    """The same in a few words."""
    if error.nearest is None:
        return str(error).removeprefix("plan: ")
    return f"cannot be met; the nearest is {Goal(error.nearest.measure, error.nearest.value)}"


def unit_factors(subject: Subject) -> Factors:
    """Factors of every layer that may have some, all of them identities."""
    layers, skipped = select(subject.model, subject.settings.layers)
    specs = {name: LayerSpec.of(name, layer) for name, layer in layers.items()}
    units = {}
    for name, spec in specs.items():
        A, G = (torch.eye(shape[-1]).expand(shape).contiguous() for shape in factor_shapes(spec, "channel"))
        units[name] = LayerFactors(A, G, 1)
    example = subject.example
    settings = FactorSettings(
        loss="cross_entropy",
        fisher="mc",
        samples=1,
        kind="channel",
        weight_sharing="expand",
        seed=0,
        count=1,
        example_shape=tuple(example.shape[1:]),
        example_dtype=str(example.dtype).removeprefix("torch."),
    )
    return Factors(units, specs, skipped, settings)
