"""The worker: the Celery task of a step, the runtime, the clock, settings, and the embedded broker."""
