"""``eigendamage plan``: what several budgets would cut, from factors that were estimated once."""

import argparse
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from eigendamage_ext.cli.options import add_settings, read_settings
from eigendamage_ext.cli.parsing import Commands, add_command
from eigendamage_ext.runs.settings import Budgets, PlanSettings


def add(commands: Commands) -> None:
    """The parser."""
    parser = add_command(
        commands,
        "plan",
        run,
        help="show what several budgets would cut, from one file of factors",
        description="Plans every budget by every method from one file of factors, in a table. No data are\n"
        "read and nothing is cut.",
        examples="  eigendamage plan out --flops 80% 50% 30%\n"
        "  eigendamage plan out/factors.safetensors --model mynet:net --weights w.safetensors --params 50%\n"
        "  eigendamage plan out --flops 50% --methods eigendamage eigendamage.kfac.least_loss --full",
    )
    parser.usage = "%(prog)s FACTORS --flops SHARE … [options]"
    parser.add_argument(
        "factors",
        type=Path,
        metavar="FACTORS",
        help="file of factors, or the folder of a run, whose network and limits are taken then",
    )
    parser.add_argument("--full", action="store_true", help="show every layer of every plan")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plans as JSON, too")
    add_settings(parser, PlanSettings)


def run(options: argparse.Namespace) -> int:
    """Makes the plans and prints them; 1 if no budget can be met."""
    factors: Path = options.factors
    settings = read_settings(options, PlanSettings, _of_run(factors) if factors.is_dir() else None)
    from eigendamage_ext.pruning.plan import Plan
    from eigendamage_ext.runs.plans import compared, plans
    from eigendamage_ext.runs.stages import write_json

    found = []
    for planned in plans(settings, factors, "plan"):
        found.append(planned)
        if options.full and isinstance(planned.plan, Plan):
            print(f"{planned.plan}\n")
    print(compared(found))
    made = [one for one in found if isinstance(one.plan, Plan)]
    if options.json is not None:
        write_json(options.json, [one.plan.record() for one in made if isinstance(one.plan, Plan)])
    return 0 if made else 1


def _of_run(folder: Path) -> dict[str, Any]:
    """What a run says of its network and of what may be cut."""
    config = folder / "config.toml"
    if not config.is_file():
        raise ValueError(
            f"plan: factors must be a file, or a run's folder, got {folder}, without a config.toml"
        )
    wanted = {entry.name for entry in fields(PlanSettings)} - {entry.name for entry in fields(Budgets)}
    return {name: value for name, value in tomllib.loads(config.read_text()).items() if name in wanted}
