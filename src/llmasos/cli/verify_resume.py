"""``llmasos verify-resume``: prove that a training that is killed goes on to the same bits."""

from __future__ import annotations

from typing import Annotated

import typer

from ..progress import followed, render
from .output import AsJson, show_json, show_table

EXAMPLES = """
llmasos verify-resume my-model
llmasos verify-resume my-model --kills 20 --max-steps 60
"""


def run(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="a model that llmasos finetune has trained from files")],
    *,
    kills: Annotated[int, typer.Option(metavar="N", help="how often the run is killed with SIGKILL")] = 3,
    seed: Annotated[int, typer.Option(metavar="N", help="what the steps are drawn from")] = 0,
    max_steps: Annotated[int | None, typer.Option(metavar="N", help="train only so many steps")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that a training that is killed goes on to the same bits.

    The training of the folder is repeated twice, from its record: once whole, and once killed at random steps and
    started again each time. Weights, losses and metrics of both must have the same hashes. The folder stays as it is.
    """
    from ..training.verify import verify_resume

    with render(plain=as_json) as listener:
        found = followed(verify_resume(folder, kills=kills, seed=seed, max_steps=max_steps), listener)
    if as_json:
        show_json(found.as_dict())
        return
    many = "" if found.processes == 1 else f" in {found.processes} processes"
    print(f"{found.steps} steps{many}, killed after steps {', '.join(map(str, found.killed_at))}\n")
    show_table([
        ["", "weights", "losses and metrics"],
        ["whole run", found.weights[:16], found.metrics[:16]],
        ["killed run", found.weights_after_kills[:16], found.metrics_after_kills[:16]],
    ])  # fmt: skip
    print("\nthe same bits" + (": those of the folder too" if found.as_saved else ""))
