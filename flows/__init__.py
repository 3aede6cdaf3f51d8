"""Prefect flows: when and where the stages run. The only place that imports prefect."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before a runtime loads
