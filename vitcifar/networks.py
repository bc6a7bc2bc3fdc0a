"""The networks of a run: the one that it trains, with the weights that its config names, and its teacher."""

from vitcifar.config import TrainConfig
from vitcifar.errors import ConfigError, listed
from vitcifar.model.network import Classifier, build_network
from vitcifar.model.weights import Pretrained
from vitcifar.progress import notify_once
from vitcifar.registry.aliases import parse_uri
from vitcifar.registry.registry import Registry
from vitcifar.release.cache import open_network, release_constants, release_weights
from vitcifar.release.manifest import Manifest

MAX_NAMED = 12  # classes in a message


def make_network(config: TrainConfig, class_names: tuple[str, ...]) -> Classifier:
    """The network before training: seeded, with the weights that a config names."""

    def load_release(uri: str) -> Pretrained:
        name, version = parse_uri(uri)
        release = Registry(name).pull(version, pytorch=True)
        return Pretrained(release_weights(release), release_constants(release))

    find_teacher(config, class_names)
    return build_network(config, class_names, load_release=load_release, notify=notify_once)


def find_teacher(config: TrainConfig, class_names: tuple[str, ...]) -> Manifest | None:
    """The manifest of the teacher that a config names. Raises ConfigError when it has other classes."""
    if config.teacher == "none":
        return None
    name, version = parse_uri(config.teacher)
    registry = Registry(name)
    release = registry.manifest(registry.show(version))
    if release.class_names != tuple(class_names):
        raise ConfigError(
            f"The teacher {config.teacher} has the classes {listed(release.class_names, MAX_NAMED)}, the images have "
            f"{listed(class_names, MAX_NAMED)}: name a teacher of the same classes in the same order, or type "
            "--teacher none."
        )
    return release


def make_teacher(config: TrainConfig, class_names: tuple[str, ...]) -> Classifier | None:
    """The network of the teacher that a config names, from its verified release. Raises VitCifarError."""
    if find_teacher(config, class_names) is None:
        return None
    name, version = parse_uri(config.teacher)
    return open_network(Registry(name).pull(version, pytorch=True))
