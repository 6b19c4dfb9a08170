"""The command line: `gapmap …`. Each command is one thing a user does; the work is done elsewhere."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer

from flows.ablation_command import ablation
from flows.evaluate_commands import evaluate
from flows.finetune_command import finetune
from flows.head_commands import fit_heads
from flows.label_command import label
from flows.map_commands import evaluate_maps, show
from flows.model_commands import models
from flows.own_prefect import is_raised_by_prefect
from flows.refiner_command import fit_refiner
from flows.report_command import report
from flows.review_commands import listen, pull, push
from flows.review_server_command import review_server
from flows.round_command import round
from flows.store_commands import compact, export, query, sheet
from flows.triage_command import triage
from schemas.errors import GapmapError

_INTERRUPTED = 130  # what Typer makes of Ctrl-C
_TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    name="gapmap",
    help="Mask a pool of images with SAM or SAM 2, keep every mask with its scores in Parquet, ask about them in SQL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_COMMANDS = (label, triage, query, export, compact, sheet, show, report, push, pull, listen, review_server)
for _command in (*_COMMANDS, round, fit_heads, fit_refiner, finetune):
    app.command()(_command)
evaluate.command(name="maps")(evaluate_maps)
evaluate.command()(ablation)
app.add_typer(evaluate)
app.add_typer(models)


@app.command()
def doctor(
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only what is wrong.")] = False,
) -> None:
    """Check this machine: packages that do not go together, device, weights, cache, Prefect server."""
    from flows.doctor import examine

    wrong = 0
    for finding in examine():
        wrong += not finding.fine
        if not finding.fine:
            typer.secho(f"  bad  {finding.name}: {finding.detail}\n       {finding.remedy}", fg="red")
        elif not quiet:
            typer.echo(f"  ok   {finding.name}: {finding.detail}")
    if wrong:
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> Any:
    """Run a command; what goes wrong as foreseen ends it with a sentence, an interruption with how to go on."""
    from pydantic import ValidationError

    before = signal.signal(signal.SIGTERM, _end)
    try:
        return app(args=arguments)
    except GapmapError as error:
        typer.secho(f"gapmap: {error}", fg="red", err=True)
    except ValidationError as error:
        for fault in error.errors():
            name = "--" + "-".join(str(part) for part in fault["loc"]).replace("_", "-")
            if len(fault["loc"]) == 1 and name.endswith("-s"):  # the option spells it out
                name += "econds"
            typer.secho(f"gapmap: {name}: {fault['msg']} (given: {fault['input']!r})", fg="red", err=True)
    except SystemExit as end:
        if end.code in (_INTERRUPTED, _TERMINATED):
            text = "gapmap: stopped. What was committed stays; the same command goes on from there."
            typer.secho(text, err=True)
        raise
    except Exception as error:
        if not is_raised_by_prefect(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        typer.secho(f"gapmap: Prefect cannot run this: {reason}", fg="red", err=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(1)


def _end(*_: Any) -> None:
    """As Ctrl-C does: what was begun is cleared away, and the run told to have ended."""
    # `timeout` sends it to the command, and once more to its group.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(_TERMINATED)


if __name__ == "__main__":
    main()
