"""The only settings file, for the bot and for every worker.

Left out here: `broker_url` and `workflow_database_url`. Without them the worker runs inside the bot's
process, over SQLite files in this folder: nothing to install, nothing to start. To move out, name both
(see `docs/operations.md`), and start workers with `celery -A ckworkflow worker`; no other line changes.

Secrets are not settings: `DISCORD_TOKEN` comes from the environment.
"""

workflow_packages = ["workflows"]
