"""Catalogues: names become objects only when asked for, and a wrong name is answered with the right ones."""

import re
import subprocess
import sys

import pytest

from fewbit.algorithms import ALGORITHMS
from fewbit.catalogue import lookup, parse_entry, unknown
from fewbit.errors import CheckpointError, RecipeError
from fewbit.formats import FORMATS
from fewbit.interfaces import CHECKPOINTS, FRONTENDS
from fewbit.ranges import RANGES

CATALOGUES = {
    "algorithm": ALGORITHMS,
    "number format": FORMATS,
    "checkpoint format": CHECKPOINTS,
    "front end": FRONTENDS,
    "range method": RANGES,
}


@pytest.mark.parametrize("what", CATALOGUES)
def test_every_entry_of_every_catalogue_can_be_imported(what):
    catalogue = CATALOGUES[what]
    assert catalogue
    for name in catalogue:
        assert lookup(catalogue, name, what=what) is not None


@pytest.mark.parametrize("what", ["algorithm", "checkpoint format"])
def test_what_a_catalogue_lists_under_a_name_bears_that_name(what):
    catalogue = CATALOGUES[what]
    assert {name: lookup(catalogue, name, what=what)().name for name in catalogue} == {name: name for name in catalogue}


def test_what_the_formats_are_listed_under_is_their_name():
    assert [lookup(FORMATS, name, what="number format").name for name in FORMATS] == list(FORMATS)


def test_a_module_is_imported_only_when_its_name_is_asked_for():
    code = (
        "import sys; from fewbit.catalogue import lookup; from fewbit.interfaces import FRONTENDS;"
        "before = 'torch' in sys.modules; lookup(FRONTENDS, 'torch', what='front end');"
        "print(before, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]


def test_a_wrong_name_is_answered_with_the_closest_and_with_all():
    with pytest.raises(RecipeError) as caught:
        lookup({"gamma": "m:a", "alpha": "m:b"}, "alfa", what="letter")
    assert str(caught.value) == "unknown letter 'alfa'; did you mean 'alpha'? known: alpha, gamma"


def test_nothing_is_proposed_where_nothing_is_close():
    assert unknown("xxx", ["alpha", "gamma"], what="letter") == "unknown letter 'xxx'; known: alpha, gamma"


def test_the_caller_chooses_the_kind_of_error():
    with pytest.raises(CheckpointError):
        lookup({}, "anything", what="layout", error=CheckpointError)


def test_an_entry_is_a_name_a_table_or_an_object_and_nothing_else():
    nearest = parse_entry("nearest", ALGORITHMS, what="algorithm", example="gptq")
    assert parse_entry({"name": "nearest"}, ALGORITHMS, what="algorithm", example="gptq") == nearest
    assert parse_entry(nearest, ALGORITHMS, what="algorithm", example="gptq") is nearest
    for value, message in [
        (7, '7 is no algorithm; write for example "gptq"'),
        (type(nearest), 'Nearest\'> is no algorithm; write for example "gptq"'),
        ({"damping": 1}, "{'damping': 1} without a name is no algorithm; write for example { name = \"gptq\" }"),
    ]:
        with pytest.raises(RecipeError, match=f"{re.escape(message)}$"):
            parse_entry(value, ALGORITHMS, what="algorithm", example="gptq")
