"""The project's own configuration: what commands started in this folder run with.

`celery -A ckworkflow worker` and `ckworkflow plan ...` read the `celeryconfig.py` of the folder they
are started in. This one points at the example bot, so that both have something to show. Broker and
database are left out: the embedded default.
"""

import sys
from pathlib import Path

# Workers import the workflow packages by name, so the folder that holds them must be on the path.
sys.path.append(str(Path(__file__).parent / "examples" / "seed_bot"))

workflow_packages = ["workflows"]
