"""Options of the command line: a float that is no finite number is refused by every command."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
import typer

from simulations.cli import app


def float_options(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Option]]:
    """Walk through every command's options of type float."""
    for sub, child in getattr(command, "commands", {}).items():
        yield from float_options(child, f"{name} {sub}")
    for option in command.params:
        if isinstance(option.type, click.types.FloatParamType) or option.type.name == "float range":
            yield name, option


FLOATS = list(float_options(typer.main.get_command(app)))


def test_there_are_options_of_type_float():
    assert {"truncation", "gpus_per_site", "cell_timeout", "minutes", "height"} <= {
        option.name for _, option in FLOATS
    }


@pytest.mark.parametrize(("command", "option"), FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_option_takes_what_is_not_finite(command, option, value):
    context = click.Context(click.Command(command))
    with pytest.raises(click.BadParameter):
        option.process_value(context, value)
