"""The stages of an experiment, in order, and about how much work each is."""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from eigendamage_ext.runs.stages import Stage

from .asked import Asked
from .cell import NOTHING, Cell, need_of
from .images import DATA_SETS, Images, load
from .settings import AUTOCAST, Network, Settings


class Experiment:
    """A folder of files, and how each is made.

    Args:
        settings: What is done.
        data: Folder of the images.
        out: Where the files go.
        device: Where it is done.
        deadline: The ``time.monotonic()`` by which a training stops.
    """

    def __init__(
        self, settings: Settings, data: Path, out: Path, *, device: str, deadline: float | None
    ) -> None:
        self.settings, self.data, self.out, self.deadline = settings, data, out, deadline
        self.device = torch.device(device)
        self.autocast = AUTOCAST[settings.autocast]
        self.data_set = DATA_SETS[settings.data.name]
        self.images = cache(self._images)

    def stages(self, networks: Sequence[str], seeds: Sequence[int]) -> list[Stage]:
        """All that is to be made, in order."""
        return [
            stage
            for seed in seeds
            for network in networks
            for stage in self._stages(Cell(self, network, seed))
        ]

    def _stages(self, cell: Cell) -> Iterator[Stage]:
        """What is to be made of one network with one seed."""
        s, one = self.settings, flops(cell.architecture, self.settings.data.name)
        train, test = (n or size for n, size in zip(s.data.counts, self.data_set.sizes, strict=True))
        label, how, tuning = (
            f"{cell.network} seed {cell.seed}",
            cell.architecture.training,
            cell.architecture.finetuning,
        )
        path = cell.folder / "trained.json"
        work = 1e10 + (0 if cell.architecture.weights else 3 * train * how.epochs * one)
        yield Stage(f"{label}: train", path, work, cell.train, path.with_suffix(".checkpoint"))
        work = 8 * (s.factors.images or train) * one
        one_pass = [variant for pruning in s.pruning if pruning.steps == 1 for variant in pruning.variants]
        for need in dict.fromkeys(map(need_of, one_pass)):
            if need != NOTHING:
                make = partial(cell.estimate, need)
                yield Stage(f"{label}: factors, {need}", cell.factors(need), work, make)
        for asked in Asked.all(s):
            what, folder = f"{label}: {asked.variant} {asked.budget}".rstrip(), cell.folder / asked.folder
            action, make = ("prune", cell.prune) if asked.pruning else ("measure", cell.measure)
            work = 2 * asked.kept * test * one
            yield Stage(f"{what}, {action}", folder / "cut.json", work, partial(make, asked))
            seen = (3 * asked.kept + tuning.teacher) * (tuning.images or train) * cell.epochs(asked)
            for rate in tuning.lr:
                tuned, last = folder / f"tuned-{rate:g}.json", rate == tuning.lr[-1]
                yield Stage(
                    f"{what}, fine-tune",
                    folder / "result.json" if last else tuned,
                    (seen + asked.kept * test) * one,
                    partial(cell.tune, asked, rate),
                    tuned.with_suffix(".checkpoint"),
                )
            if s.timing:
                work = (1 + asked.kept) * sum(s.timing.batches) * (s.timing.repeats + 1) * one
                yield Stage(f"{what}, time", folder / "latency.json", work, partial(cell.time, asked))

    def _images(self, seed: int) -> Images:
        data = self.settings.data
        return load(
            data.name,
            self.data,
            counts=data.counts,
            validation=data.validation,
            mean=data.mean,
            std=data.std,
            seed=seed,
            device=self.device,
        )


@cache
def flops(network: Network, data: str) -> int:
    """Of a network on one image of a data set."""
    data_set = DATA_SETS[data]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network.build(data_set.classes, data_set.shape[0])(torch.empty(2, *data_set.shape))
    return counter.get_total_flops() // 2
