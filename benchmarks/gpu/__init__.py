"""What `benchmarks.gpu_run` runs on a GPU."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))  # for the accuracy policy
