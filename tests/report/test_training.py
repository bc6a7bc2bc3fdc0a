"""What a report says about a training."""

import dataclasses
import shlex

import pytest
from click.testing import CliRunner

from vitcifar.cli import main
from vitcifar.config import TrainConfig
from vitcifar.errors import ConfigError
from vitcifar.presets import PRESETS, resolve
from vitcifar.report import plots
from vitcifar.report.training import Training, different_settings, training_findings, training_section

CURVES = {
    "train/loss": [(10, 2.0), (20, 1.0), (30, 0.5)],
    "validation/loss": [(10, 1.5), (20, 0.9), (30, 1.1)],
    "train/accuracy": [(10, 0.3), (20, 0.6), (30, 0.8)],
    "validation/accuracy": [(10, 0.4), (20, 0.7), (30, 0.6)],
}
TRAINING = Training(config=resolve("digits"), curves=CURVES, best_epoch=2)


def repeat(config: TrainConfig) -> str:
    """The command in the report of a training."""
    return training_section(Training(config=config, curves={}, best_epoch=1)).command


def test_curves_have_a_point_for_each_epoch_and_a_line_at_the_best():
    loss, accuracy = plots.training_curves(CURVES, 2).axes
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        train, validation, best = axes.lines
        assert train.get_xydata().tolist() == [[1 + i, v] for i, (_, v) in enumerate(CURVES[f"train/{quantity}"])]
        assert [*validation.get_ydata()] == [value for _, value in CURVES[f"validation/{quantity}"]]
        assert [*best.get_xdata()] == [2, 2]
    assert [text.get_text() for text in loss.texts] == ["epoch 2: 0.900 on validation"]


def test_the_best_epoch_is_said_and_that_more_epochs_may_help():
    assert [f.text for f in training_findings(TRAINING)] == [
        "The weights are those of epoch 2 of 3, the best on validation."
    ]
    last = dataclasses.replace(TRAINING, best_epoch=3)
    assert training_findings(last)[0].text.endswith("epoch 3 of 3, the best on validation: more --epochs may help.")
    assert not training_findings(dataclasses.replace(TRAINING, curves={}))


def test_settings_that_differ_stand_beside_their_defaults():
    section = training_section(TRAINING)
    (table,) = section.tables
    assert {row[0] for row in table.rows} == set(PRESETS["digits"]) and len(section.figures) == 1
    assert ["epochs", "12", "10", "Number of training epochs."] in table.rows
    assert not training_section(dataclasses.replace(TRAINING, config=resolve("cifar10"))).tables


def test_the_command_is_the_shortest_with_these_settings():
    assert repeat(resolve("cifar10")) == "vitcifar train"
    assert repeat(resolve("digits", epochs=3)) == "vitcifar train --preset digits --epochs 3"
    own = dataclasses.replace(resolve("cifar10"), data="folder", data_dir="my images", resume="last", run_name="x")
    assert repeat(own) == "vitcifar train --data folder --data-dir 'my images'"


@pytest.mark.parametrize("changed", [{}, {"seed": 3, "learning_rate": 3e-4, "warmup_epochs": 0.5, "ood": "none"}])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_gives_the_same_settings_when_it_is_typed(monkeypatch, preset, changed):
    config, given = resolve(preset, **changed), []

    def train(config):
        given.append(config)
        raise ConfigError("enough")

    monkeypatch.setattr("vitcifar.tracking.connect", lambda uri: None)
    monkeypatch.setattr("vitcifar.pipeline.train", train)
    done = CliRunner().invoke(main, shlex.split(repeat(config))[1:])
    assert given == [config] and "enough" in done.output


def test_different_settings_leave_out_what_only_names_the_run():
    own = dataclasses.replace(resolve("cifar10"), run_name="monday", seed=2)
    assert [row[:3] for row in different_settings(own)] == [("seed", 2, 0)]


def test_weights_that_are_of_no_epoch_say_how_they_were_made_and_draw_no_curves():
    method = "The head was fitted by L-BFGS, C = 0.1 by cross-validation"
    training = dataclasses.replace(TRAINING, method=method, options=" --seeds 3 --soup greedy")
    assert [finding.text for finding in training_findings(training)] == [f"{method}."]
    section = training_section(training)
    assert "took no part: the head was fitted by L-BFGS" in section.text and "epoch" not in section.text
    assert section.command.endswith(" --seeds 3 --soup greedy") and not section.figures
