import subprocess
import sys

PROGRAM = """
import importlib.util
import sys
import types

# The face of the package loads the models; what the scheduler itself loads is asked for here.
package = types.ModuleType("qvg_engine")
package.__path__ = importlib.util.find_spec("qvg_engine").submodule_search_locations
sys.modules["qvg_engine"] = package

import qvg_engine.scheduler.core

loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "torch")
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""


def test_the_scheduler_does_not_load_torch() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
