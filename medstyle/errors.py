"""Errors that a person can act on: one line that names the cause and the remedy, never a traceback."""


class UserError(Exception):
    """Bad input or configuration. The command line prints the message and exits with code 2."""


class Refusal(UserError):
    """An input that cannot be used.

    ``code`` is stable and machine-readable (``E_GAP``, ``E_NOT_DICOM``…); the message holds the numbers and the
    remedy and never patient data.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
