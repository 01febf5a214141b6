"""The project's own configuration: what the examples, the containers of `docker/`, and commands started here run with.

`celery -A ckworkflow worker` and `ckworkflow plan ...` read the `celeryconfig.py` of the folder they
are started in. This one points at the example bot, so that both have something to show. Where broker and
database are is the environment's to say, since it differs from place to place and may hold a password; where it
says nothing, it is the embedded default.
"""

import os
import sys
from pathlib import Path

broker_url = os.environ.get("CELERY_BROKER_URL")  # Celery's own name for it
workflow_database_url = os.environ.get("CKWORKFLOW_DATABASE_URL")

# Workers import the workflow packages by name, so the folder that holds them must be on the path. (In a container
# they lie beside this file.)
sys.path.append(str(Path(__file__).parent / "examples" / "seed_bot"))

workflow_packages = ["workflows"]
