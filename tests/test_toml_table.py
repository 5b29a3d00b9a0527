"""TOML that nobody vouches for: what is TOML is read, what would take all memory or makes no sense is an error."""

import re
import tomllib
import tracemalloc

import pytest

from fewbit.errors import RecipeError
from fewbit.toml_table import LARGEST, parse_table

GENUINE = {
    "every kind of value": (
        'a = 1\nb = -0.5e3\nc = "x\\"y"\nd = \'z\'\ne = true\nf = [1, [2]]\ng = {h.i = 2}\n'
        "j = 1979-05-27T07:32:00.999\nk = 0xff\nl = inf\n"),
    "dotted keys": ('a.b.c = 1\n[d."e.f".g]\nh = 2\n[[i.j]]\nk = 3\n'),
    "as many parts as are read": ("a" + ".a" * 31 + " = 1"),
    "many dots in texts": ('a = "' + "b." * 500 + '"\nc = \'' + "d." * 500 + "'\n# " + "e." * 500),
    "many dots in long texts": ('a = """\n' + "b.\n" * 500 + '"""\nc = \'\'\'' + "d." * 500 + "'''"),
    "quotes in long texts": ('a = """x"y""z\\""""\nb = \'\'\'x\'y\'\'z\'\'\'\nc = 1 # it\'s """ no text\nd = 2'),
    "the largest whole numbers": (f"a = {2**63 - 1}\nb = {-(2**63)}"),
    "nothing": "",
}  # fmt: skip


@pytest.mark.parametrize("case", GENUINE)
def test_what_is_toml_is_read_as_the_library_reads_it(case):
    assert parse_table(GENUINE[case], "r") == tomllib.loads(GENUINE[case])


DEEP = ".a" * 1000 + " = 1"
FAULTS = {
    "a key of a thousand parts": (f"a{DEEP}", "r is not read: line 1 has a key of more than 32 dotted parts"),
    "one part too many": ("\n\na" + ".a" * 32 + " = 1", "line 3 has a key of more than 32 dotted parts"),
    "parts apart": ("a" + " \t. a" * 40, "line 1 has a key of more than 32 dotted parts"),
    "parts in quotes": ('""' + ".\"\\\"\".'#'" * 40, "line 1 has a key of more than 32 dotted parts"),
    "a table of a thousand parts": (f"[a{'.a' * 1000}]", "line 1 has a key of more than 32 dotted parts"),
    "behind a text": (f'x = {{y = """ " """, a{DEEP}}}', "line 1 has a key of more than 32 dotted parts"),
    "behind a literal": (f"x = ''' ' '''\na{DEEP}", "line 2 has a key of more than 32 dotted parts"),
    "behind a comment": (f'# """ \' "\na{DEEP}', "line 2 has a key of more than 32 dotted parts"),
    "arrays that nest": ("a = " + "[" * 40_000, "r is not read: its arrays or tables nest too deeply"),
    "tables that nest": ("a = " + "{a = " * 40_000, "r is not read: its arrays or tables nest too deeply"),
    "arrays without end": ("a = " + "[" * 100_000, "r is not read: it has more than 50000 tables, arrays and dots"),
    "tables without end": ("a = " + "{a = " * 100_000, "r is not read: it has more than 50000 tables, arrays and dots"),
    "5000 digits": ("a = " + "9" * 5000, "r is not valid TOML: Exceeds the limit"),
    "hexadecimal digits without end": ("a = {b = [0x" + "f" * 9000 + "]}", "r: 'a': 'b' is a whole number of 36"),
    "2^63": (f"a = {2**63}", "r: 'a' is a whole number of 64 bits; TOML has those of 64 bits"),
    "NUL": ('a = "\0"', r"r is not valid TOML: Illegal character '\x00' (at line 1, column 6)"),
    "no value": ("a = ", "r is not valid TOML: Invalid value (at end of document)"),
    "a key twice": ("a = 1\na = 2", "r is not valid TOML: Cannot overwrite a value"),
    "too long": ("#" * (LARGEST + 1), f"r has more than {LARGEST} characters, which no table needs"),
    "a quote without end": ('a = "' + '\\"' * 400_000, "r is not valid TOML: Unterminated string"),
    "a text without end": ('a = """' + '"' * 300_000 + "\n", "r is not valid TOML"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_an_error_that_says_where_and_takes_little_memory(case):
    text, message = FAULTS[case]
    tracemalloc.start()
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_table(text, "r")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20
