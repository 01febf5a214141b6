"""The steps: the Celery task of each, the driver that runs it and those after it, and what the world sees of that."""
