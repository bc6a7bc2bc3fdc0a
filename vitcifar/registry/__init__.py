"""Which release counts: versions, aliases, gates, history, model card, doctor.

The package can be called: `vitcifar.registry("vitcifar")` opens the registry of a model. A function of this name
would be replaced as soon as anything imports a module of the room.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry


class _Room(ModuleType):
    def __call__(self, model_name: str = "vitcifar", *, tracking_uri: str | None = None) -> "Registry":
        """The versions of a model in the registry of `tracking_uri` (default: MLFLOW_TRACKING_URI, else ./mlflow.db).

        Raises TrackingError when the store is missing or unreachable.
        """
        from vitcifar import tracking
        from vitcifar.registry.registry import Registry

        tracking.connect(tracking_uri, new=False)
        return Registry(model_name)


sys.modules[__name__].__class__ = _Room
