"""Choosing formats on the command line: a calibration with its bars, the choice as a table."""

from rich import box
from rich.console import Console
from rich.table import Table

from qvg_engine.cli.steps import Steps
from qvg_engine.config import EngineConfig
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.calibration import CalibrationSettings, calibrate
from qvg_engine.quality.kv_choice import KvChoice
from qvg_engine.quality.kv_prices import kv_prices


def choose_on_prompts(
    family: ModelFamily,
    config: EngineConfig,
    settings: CalibrationSettings,
    *,
    console: Console,
) -> KvChoice:
    """Calibrate, and print what was chosen.

    Raises ConfigError, before anything is generated, for bits that no formats take.
    """
    prices = kv_prices(family, config, num_frames=settings.num_frames)
    prices.check(settings.kv_bits, name="--kv-bits")
    with Steps(console, line="starting") as steps:
        choice = calibrate(family, config, prices, settings, progress=steps.show)
    console.print(_table(choice))
    overhead = choice.allocation.codebook_overhead
    console.print(
        f"{choice.bits:.3f} bits an element, up to {overhead} of them for codebooks; predicted "
        f"error of the first latents {choice.predicted_error:.4f}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return choice


def _table(choice: KvChoice) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("layer", justify="right")
    table.add_column("K")
    table.add_column("V")
    for layer, pair in enumerate(choice.allocation.layers):
        table.add_row(str(layer), pair.keys.name, pair.values.name)
    return table
