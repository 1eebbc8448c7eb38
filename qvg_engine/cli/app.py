"""The command line's entry: commands, exit codes, and errors as one line on stderr.

Exit codes: 0 done; 2 something is wrong that the message says how to put right, also if only some
videos failed; 130 after Ctrl-C. Anything else is a mistake of ours, with a traceback.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from qvg_engine.cli.bench import bench
from qvg_engine.cli.calibrate import calibrate
from qvg_engine.cli.capture import capture
from qvg_engine.cli.doctor import doctor
from qvg_engine.cli.exit_code import ExitCode
from qvg_engine.cli.generate import generate
from qvg_engine.errors import QvgError
from qvg_engine.version import __version__

app = typer.Typer(
    name="qvg-engine",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(generate)
app.command()(doctor)
app.command()(bench)
app.command()(capture)
app.command()(calibrate)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Generate many long videos at once."""
    if version:
        typer.echo(f"qvg-engine {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with `arguments` (default: those of the process); the exit code."""
    try:
        code = app(args=arguments, prog_name="qvg-engine", standalone_mode=False)
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} (see qvg-engine --help)")
    except QvgError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    return int(code or 0)


def _fail(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return ExitCode.USER_ERROR
