"""Prefect flows, which decide when and where the stages run; only this package imports prefect."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # like the command line, before a runtime is loaded
