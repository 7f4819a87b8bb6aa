"""``llmasos deploy``: put a model on a machine, a cluster or a cloud; rehearsed before it costs anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer

from ..core import plugins
from ..core.config import DeployConfig, parse_settings
from ..core.errors import UsageError, did_you_mean
from ..targets.base import State
from .options import Settings, config_flags, with_flags
from .output import AsJson, say, show_json, show_table

EXAMPLES = """
llmasos deploy docker my-model --render image
llmasos deploy kubernetes my-model --render manifests --replicas 2 --max-replicas 8 --memory 4GB
llmasos deploy kubernetes my-model --rehearse
llmasos deploy sagemaker my-model --render aws --set role=arn:aws:iam::123456789012:role/serve --set bucket=s3://models
llmasos deploy sagemaker my-model --apply --image REGISTRY/llmasos:1 --set bucket=s3://models --set role=ARN
llmasos deploy sagemaker new --name my-model --apply --canary 10% --image R/llmasos:1 --set bucket=s3://m --set role=ARN
llmasos deploy azureml my-model --apply --image REGISTRY/llmasos:1 --set group=mine --set workspace=lab
llmasos deploy kubernetes my-model --apply --image REGISTRY/llmasos:1 --set model=REGISTRY/models/my-model:1
llmasos deploy kserve my-model --apply --image REGISTRY/llmasos:1 --set mode=knative --set model=s3://models/my-model
llmasos deploy ray my-model --apply --set address=http://head:8265 --set model=/srv/models/my-model
llmasos deploy status my-model
llmasos deploy promote my-model
llmasos deploy rm my-model
llmasos deploy systemd my-model-onnx-int8 --render . --cpus 4 --port 8080
"""


@with_flags(*config_flags(DeployConfig, panel="What is deployed"))
def run(
    target: Annotated[
        str,
        typer.Argument(
            metavar="|".join(plugins.names("targets")), help="the place; or status, logs, rm, promote or back"
        ),
    ],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a model or an export; for the others a deployment")],
    *,
    render: Annotated[str | None, typer.Option(metavar="DIR", help="write the place's files into this folder")] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="run the place's contract here, against a real server")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply", help="put it there, where that is done from here")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that were edited by hand")] = False,
    settings: Settings = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Deploy a model: render the files of a place, rehearse what the place does with them, put it there.

    Files are written to be kept and edited: one that was edited since is shown as a difference and stays. A rehearsal
    starts the server as the place would, asks it as the place does, also under load, and stops it; every answer is
    compared with the model's golden rows. Options of the place itself are given with --set.

    With --apply it is put there; then status, logs and rm find it by its name. With --canary it is tried beside the
    version that is there, for the time of --watch; promote or back end that earlier.
    """
    if target in ACTIONS:
        if render or rehearse or apply or options or settings:
            raise UsageError(f"{target} takes a name alone", hint=f"llmasos deploy {target} {model}")
        ACTIONS[target](model, as_json=as_json)
        return
    if target not in (known := plugins.names("targets")):
        raise UsageError(f"there is no target {target!r}",
                         hint=f"{did_you_mean(target, [*known, *ACTIONS])}known: {', '.join(known)}")  # fmt: skip
    if not apply and RELEASE & set(options):
        raise UsageError("a share of the requests is for what is put there", hint="--apply --canary 10%")
    if not (render or rehearse or apply):
        raise UsageError("nothing to do", hint="--render DIR, --rehearse or --apply")
    from ..deployment import render as rendering
    from ..deployment import settled
    from ..llm import LLM

    located = LLM.from_pretrained(model).located
    asked = {**parse_settings(settings or []), **options}
    job = settled(target, located.path, asked, called=model.rstrip("/").rsplit("/", 1)[-1])
    told: dict[str, Any] = {"target": target, "name": job.deployment.name}
    if rehearse:
        told["rehearsal"] = _rehearsed(job, as_json=as_json)
    if render:
        written = rendering(job, render, overwrite=overwrite)
        told["rendered"] = written.as_dict()
        if not as_json:
            _show(written)
    if apply:
        told["state"] = _applied(job, as_json=as_json)
    if as_json:
        show_json(told)


def _applied(job: Any, *, as_json: bool) -> dict[str, Any]:
    from ..deployment import apply
    from ..progress import followed, render
    from ..releasing import release

    name = job.deployment.name
    try:
        with render(plain=as_json) as draw:
            if job.share is None:
                found = followed(apply(job), draw)
            else:
                found = followed(release(job, job.share, job.watch), draw).state
    except KeyboardInterrupt:
        end = f"rm {name} removes it" if job.share is None else f"promote|back {name} ends the release"
        raise KeyboardInterrupt(f"llmasos deploy status {name} tells what is there, {end}") from None
    if not as_json:
        print(found.address or name)
    return asdict(found)


def _status(name: str, *, as_json: bool) -> None:
    from ..deployment import placed

    one = placed(name)
    state = one.plugin.state(name, one.region)
    if as_json:
        show_json({**asdict(one), "state": state and asdict(state)})
        return
    told = state or State("gone")
    rows = [("target", one.target), ("state", told.word), ("why", told.why), ("address", told.address)]
    show_table([row for row in rows if row[1]])


def _logs(name: str, *, as_json: bool) -> None:
    from ..deployment import placed

    one = placed(name)
    lines = one.plugin.logs(name, one.region)
    if as_json:
        show_json({**asdict(one), "lines": list(lines)})
        return
    for line in lines:
        print(line)


def _rm(name: str, *, as_json: bool) -> None:
    from ..deployment import placed, removed

    one = placed(name)
    found = removed(one)
    if as_json:
        show_json({**asdict(one), "removed": found})
        return
    for what in found:
        say(f"removed {what}")


def _end(name: str, *, verb: str, as_json: bool) -> None:
    from ..deployment import placed
    from ..progress import followed, render
    from ..releasing import ended

    one = placed(name)
    with render(plain=as_json) as draw:
        followed(ended(one, verb), draw)
    if as_json:
        show_json({**asdict(one), "ended": verb})


ACTIONS: dict[str, Callable[..., None]] = {
    "status": _status, "logs": _logs, "rm": _rm, "promote": partial(_end, verb="promote"),
    "back": partial(_end, verb="back"),
}  # fmt: skip
RELEASE = {"canary", "watch"}
"""What is done with a deployment that is there, by its name."""


def _rehearsed(job: Any, *, as_json: bool) -> dict[str, Any]:
    from ..progress import followed, render
    from ..rehearsal import rehearse

    with render(plain=as_json) as draw:
        found = followed(rehearse(job), draw)
    if not as_json:
        show_table([("step", "seen", "seconds"), *((one.asked, one.seen, f"{one.seconds:.2f}") for one in found.steps)])
        print(f"\n{found.target} would run it: {len(found.steps)} steps")
    content: dict[str, Any] = found.as_dict()
    return content


def _show(written: Any) -> None:
    for name in written.files:
        print(written.folder / name)
    for name in written.removed:
        say(f"removed {written.folder / name}")
    if (checked := written.validated) is not None:
        say(
            f"checked by {checked.tool}"
            if not checked.missing
            else f"not checked: {checked.tool} needs {checked.missing}"
        )
    say("put there by:")
    for step in written.steps:
        say(f"  {step}")
