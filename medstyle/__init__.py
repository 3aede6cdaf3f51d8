"""medstyle: from a folder of scans or pictures to a trained, measured, registered and served style-transfer model."""

from importlib.metadata import version

__version__ = version("medstyle")
