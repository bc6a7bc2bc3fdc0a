"""What a user can fix, as one tree. Everything else is a bug and keeps its traceback.

VitCifarError
├── ConfigError      a setting with a value that cannot be
├── DataError        pictures that are missing, too few or not where they were said to be
│   └── PictureError     one file or one upload that is not a usable picture
├── TrainingError    a loss that is not finite, a checkpoint that does not fit
├── TrackingError    a tracking store or a run that cannot be reached
├── RegistryError    a model, version or alias that is not there
├── ReleaseError     a release that is broken, changed or not proven
└── ServingError     a port in use, a question that cannot be answered
"""


class VitCifarError(Exception):
    """What happened, then what to type next, in one or two sentences."""


class ConfigError(VitCifarError):
    pass


class DataError(VitCifarError):
    pass


class PictureError(DataError):
    pass


class TrainingError(VitCifarError):
    pass


class TrackingError(VitCifarError):
    pass


class RegistryError(VitCifarError):
    pass


class ReleaseError(VitCifarError):
    pass


class ServingError(VitCifarError):
    pass
