"""The seed page in Python: one folder per workflow, its steps beside it, `shared/` for all.

Workers import everything below this package (`workflow_packages` in `celeryconfig.py`). Folders need no
`__init__.py`; workflow and steps may also share a file.
"""
