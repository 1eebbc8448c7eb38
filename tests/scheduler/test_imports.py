import subprocess
import sys

PROGRAM = """
import sys

import qvg_engine.scheduler.core

loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "torch")
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""


def test_the_scheduler_does_not_load_torch() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
