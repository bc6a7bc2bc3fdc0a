"""What may be a model's name, an alias and the address of a version."""

import re

from vitcifar.errors import RegistryError


def check_model_name(name: str) -> None:
    """Raises RegistryError for a name that MLflow or a models:/ address cannot hold."""
    if not re.fullmatch(r"[\w. -]{1,200}", name) or name.strip() != name:
        raise RegistryError(f"{name!r} cannot name a model: use letters, digits, spaces, '-', '_' and '.'.")


def check_alias(alias: str) -> None:
    """Raises RegistryError for an alias that could be taken for a number, and for MLflow's reserved ones."""
    if alias == "latest" or re.fullmatch(r"[vV]?\d+", alias) or not re.fullmatch(r"[A-Za-z_][\w-]{0,99}", alias):
        raise RegistryError(
            f"{alias!r} cannot be an alias: use a word of letters, digits, '-' and '_', such as challenger; `latest`, "
            "numbers and names such as v3 are reserved."
        )


def parse_uri(uri: str) -> tuple[str, str]:
    """models:/NAME/VERSION or models:/NAME@ALIAS -> name and what was asked for. Raises RegistryError."""
    match = re.fullmatch(r"models:/(?P<name>[^/@]+)[/@](?P<spec>[^/@]+)", uri)
    if match is None:
        raise RegistryError(
            f"{uri!r} is not the address of a version: type models:/vitcifar/3 or models:/vitcifar@champion."
        )
    return match["name"], match["spec"]
