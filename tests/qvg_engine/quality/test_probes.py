"""What one part in few bits does to a video, and how that weighs its errors."""

import numpy as np
import pytest

from qvg_engine.allocation import Allocation
from qvg_engine.block_manager.format import LayerFormats, get_format
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.kv_prices import kv_prices
from qvg_engine.quality.probes import Probes, measure_effects, weighted
from tests.qvg_engine.quality.conftest import CONFIG, PROMPT


@pytest.fixture(scope="module")
def probes(pocket: ModelFamily) -> Probes:
    return Probes(pocket, CONFIG, prompt=PROMPT, seed=3, num_frames=24)


def uniform(name: str) -> Allocation:
    page_format = get_format(name)
    layers = (LayerFormats(keys=page_format, values=page_format),) * 6
    return Allocation(layers=layers, codebook_overhead=0.33)


def test_finer_formats_err_less_and_exact_ones_not(probes: Probes) -> None:
    errors = [probes.error(uniform(name)) for name in ("q1", "q2", "q4")]
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[2] < errors[0] / 10
    assert probes.error(uniform("bf16")) == 0


def test_every_part_has_an_effect(pocket: ModelFamily, probes: Probes) -> None:
    prices = kv_prices(pocket, CONFIG, num_frames=24)
    told: list[tuple[int, int]] = []
    effects = measure_effects(
        probes, prices, overhead=0.33, on_probe=lambda done, total: told.append((done, total))
    )
    assert effects.shape == (6, 2)
    floor = probes.error(uniform("q4"))
    assert (effects >= 0.1 * floor * 0.999).all()
    assert effects.max() > 5 * floor, "some part matters"
    assert told == [(done, 13) for done in range(14)]
    # The same video with one part in the leanest format.
    lean = next(item for item in prices.candidates if item.name == "q1-lean")
    layers = list(uniform("q4").layers)
    layers[4] = LayerFormats(keys=lean, values=layers[4].values)
    found = probes.error(Allocation(layers=tuple(layers), codebook_overhead=0.33))
    assert effects[4, 0] == pytest.approx(max(found - floor, 0.1 * floor))


def test_weights_make_the_leanest_format_cost_its_effect(pocket: ModelFamily) -> None:
    prices = kv_prices(pocket, CONFIG, num_frames=24)
    random = np.random.default_rng(0)
    errors = random.exponential(size=(3, 6, 2, len(prices.candidates)))
    effects = random.exponential(size=(6, 2))
    found = weighted(errors, effects, prices, overhead=0.13)
    lean = prices.row_bytes.index(min(prices.row_bytes))
    assert found[1, :, :, lean] == pytest.approx(effects)
    assert found[2, 3, 1, 4] / found[0, 3, 1, 0] == pytest.approx(
        errors[2, 3, 1, 4] / errors[0, 3, 1, 0]
    )
