"""Every error that pyquant raises on purpose."""


class PyquantError(Exception):
    """Base of all errors of this package; the command line prints it and exits with code 2."""


class ConfigError(PyquantError):
    """An option, a rule or a recipe is not one that pyquant understands."""


class CaptureError(PyquantError):
    """A PyTorch network cannot be described by pyquant's operations."""


class FormatError(PyquantError):
    """A file is not a valid `.pqmodel`, or not a checkpoint in a known layout."""


class InputError(PyquantError):
    """An array, picture, folder or path given by the caller cannot be used."""


class SelfCheckError(PyquantError):
    """A freshly written file does not compute what the network it came from computes."""


class MissingDependencyError(PyquantError):
    """An optional library that the requested work needs is not installed."""


class EngineError(PyquantError):
    """An engine that is being measured failed, or computes something else than pyquant."""
