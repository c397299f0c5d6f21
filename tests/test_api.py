"""The Python API as a program uses it: the public names stay functions, whatever has been imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import smelt


@pytest.mark.parametrize("name", smelt.__all__)
def test_public_names_stay_functions_when_rooms_of_the_same_name_are_imported(name: str) -> None:
    code = (
        "import smelt, types\n"
        f"first = smelt.{name}\n"
        "import smelt.api, smelt.convert.options, smelt.quantize.quantize, smelt.validate.options\n"
        f"assert isinstance(smelt.{name}, (types.FunctionType, type)) and smelt.{name} is first\n"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
