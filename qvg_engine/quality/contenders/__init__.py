"""What formats are compared with each other: `CONTENDERS` by name, see `registry.py`.

Those of the engine run through its own kernels. The others are baselines, and variants for study in
plain torch: an engine never runs them.
"""

from qvg_engine.quality.contenders.registry import CONTENDERS, contender

__all__ = ["CONTENDERS", "contender"]
