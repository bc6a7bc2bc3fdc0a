"""Search spaces as they are typed."""

from types import SimpleNamespace

import pytest

from vitcifar.config import deciding_settings
from vitcifar.errors import ConfigError
from vitcifar.experiments.search_space import SEARCHABLE, parse_space


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning_rate", "Cannot parse 'learning_rate'"),
        ("rate=1..2", "There is no setting 'rate': choose from arch"),
        ("data=digits,folder", "data is the same in every trial: type --data"),
        ("seed=0,1", "seed is the same in every trial"),
        ("learning_rate=1e-2..1e-4", "type the lower end first"),
        ("learning_rate=0..1:log", "a lower end above 0"),
        ("learning_rate=1e-4..1e-2:square", "type :log for a logarithmic range"),
        ("learning_rate=fast..slow", "expected float"),
        ("epochs=1.5..3", "expected int"),
        ("epochs=0..3", "epochs is 0: it must be at least 1"),
        ("label_smoothing=0..2", "it must be at most 0.9"),
        ("optimizer=adam,adamm", "choose one of adam, adamw, sgd"),
        ("optimizer=adam", "or --optimizer adam to set it"),
        ("optimizer=adam..sgd", "optimizer has no range"),
        ("epochs=1..2;epochs=3,4", "epochs is searched twice"),
        ("batch_size=8,16", "both searched and given as 32"),
    ],
)
def test_an_invalid_search_space_is_an_error(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_space([text], {"batch_size": 32})


def test_ranges_and_choices_are_read_as_the_settings_types():
    rate, epochs, layers = parse_space(["learning-rate=1e-4..1e-2:log", "epochs=5..20;train_layers=head,2"], {})
    assert (rate.name, rate.low, rate.high, rate.log) == ("learning_rate", 1e-4, 1e-2, True)
    assert (epochs.low, epochs.high, type(epochs.low), epochs.log) == (5, 20, int, False)
    assert layers.values == ("head", "2")


def test_the_usual_space_leaves_out_settings_that_are_given():
    names = [dimension.name for dimension in parse_space(["usual"], {"optimizer": "adam"})]
    assert names == ["learning_rate", "weight_decay", "label_smoothing"]


def test_a_sweep_searches_neither_the_images_nor_the_seed_nor_where_things_are_stored():
    assert {"learning_rate", "arch", "precision"} < set(SEARCHABLE) < set(deciding_settings())
    assert not {"data", "data_seed", "seed", "resume", "output_dir"} & set(SEARCHABLE)


@pytest.mark.parametrize(
    ("sampled", "suggested"), [(0.00123456, 0.001235), (0.01234499, 0.01234), (0.012345678, 0.0123456)]
)
def test_floats_of_a_range_have_four_digits_and_stay_in_the_range(sampled, suggested):
    trial = SimpleNamespace(suggest_float=lambda name, low, high, log: sampled)
    (rate,) = parse_space(["learning_rate=1e-4..0.0123456:log"], {})
    assert rate.suggest(trial) == suggested
