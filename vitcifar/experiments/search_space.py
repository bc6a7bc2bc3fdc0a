"""The search space of a sweep, as it is typed: `learning_rate=1e-4..1e-2:log`, `optimizer=adam,adamw`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitcifar.config import TrainConfig, check, deciding_settings, groups
from vitcifar.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Trial

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
# Neither the images nor the seed: trials that differ in them cannot be compared.
SEARCHABLE = tuple(name for name in deciding_settings() if groups()[name] != "Data")
USUAL = "usual"
USUAL_SPACE = (
    "learning_rate=1e-5..1e-2:log",
    "optimizer=adam,adamw",
    "weight_decay=1e-6..1e-1:log",
    "label_smoothing=0..0.2",
)
EXAMPLES = "learning_rate=1e-4..1e-2:log, epochs=5..20 or optimizer=adam,adamw"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dimension:
    """One setting of a search space: a range, both ends included, or a list of values."""

    name: str
    low: Any = None
    high: Any = None
    log: bool = False
    values: tuple[Any, ...] = ()

    def __str__(self) -> str:
        if self.values:
            return f"{self.name}={','.join(map(str, self.values))}"
        return f"{self.name}={self.low!r}..{self.high!r}{':log' if self.log else ''}"

    def suggest(self, trial: "Trial") -> Any:
        """A value for a trial; floats of a range have 4 digits, which a person can type."""
        if self.values:
            return trial.suggest_categorical(self.name, self.values)
        if FIELDS[self.name].type is int:
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        value = trial.suggest_float(self.name, self.low, self.high, log=self.log)
        return min(max(float(f"{value:.4g}"), self.low), self.high)


def parse_space(typed: Sequence[str], given: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """The dimensions of a sweep; `usual` = the usual space without the settings in `given`.

    One text may hold several dimensions, separated by semicolons. Raises ConfigError.
    """
    texts = [text.strip() for line in typed for text in line.split(";") if text.strip()]
    if texts in ([], [USUAL]):
        texts = [text for text in USUAL_SPACE if text.partition("=")[0] not in given]
    space = tuple(parse_dimension(text) for text in texts)
    names = [dimension.name for dimension in space]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name} is searched twice: type it in one --search.")
        if name in given:
            raise ConfigError(f"{name} is both searched and given as {given[name]!r}: leave one of them out.")
    if not space:
        raise ConfigError(f"The search space is empty: type --search, such as {EXAMPLES}.")
    return space


def parse_dimension(text: str) -> Dimension:
    """One setting with its range or its values, checked against the setting's type and bounds."""
    name, equals, rest = (part.strip() for part in text.partition("="))
    name = name.replace("-", "_")
    if not equals or not rest:
        raise ConfigError(f"Cannot parse {text!r}: expected for example {EXAMPLES}.")
    if name in FIELDS and name not in SEARCHABLE:
        raise ConfigError(f"{name} is the same in every trial: type --{name.replace('_', '-')} to set it.")
    if name not in FIELDS:
        raise ConfigError(f"There is no setting {name!r}: choose from {', '.join(SEARCHABLE)}.")
    if ".." in rest:
        return parse_range(name, rest)
    values = tuple(dict.fromkeys(read_value(name, word) for word in rest.split(",")))
    if len(values) == 1:
        option = f"--{name.replace('_', '-')} {values[0]}"
        raise ConfigError(f"{name} has one value to search, {values[0]!r}: type more, or {option} to set it.")
    return Dimension(name=name, values=values)


def parse_range(name: str, text: str) -> Dimension:
    ends, colon, scale = text.partition(":")
    low_text, _, high_text = ends.partition("..")
    if FIELDS[name].type is str:
        raise ConfigError(f"{name} has no range: list its values, such as {name}=one,other.")
    if colon and scale != "log":
        raise ConfigError(f"{name} has the scale {scale!r}: type :log for a logarithmic range, or nothing.")
    low, high = read_value(name, low_text), read_value(name, high_text)
    if not low < high:
        raise ConfigError(f"{name} is searched from {low!r} to {high!r}: type the lower end first.")
    if colon and low <= 0:
        raise ConfigError(f"{name} is searched from {low!r} on a log scale: type a lower end above 0.")
    return Dimension(name=name, low=low, high=high, log=bool(colon))


def read_value(name: str, word: str) -> Any:
    """A word as the value of a setting; raises ConfigError for an invalid one."""
    kind: Any = FIELDS[name].type
    try:
        value = kind(word.strip())
    except ValueError:
        raise ConfigError(f"{name} is searched at {word.strip()!r}: expected {kind.__name__}.") from None
    check(FIELDS[name], value)
    return value
