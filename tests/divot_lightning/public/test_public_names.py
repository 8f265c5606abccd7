import importlib
import importlib.util
import subprocess
import sys

import pytest

import divot_lightning


def in_fresh_python(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_the_package_imports_no_torch_and_none_of_its_models():
    code = "import sys, divot_lightning; print([m for m in ('torch', 'lightning', 'numpy', 'av') if m in sys.modules])"
    assert in_fresh_python(code) == "[]"


@pytest.mark.parametrize("name", divot_lightning.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name):
    value = getattr(divot_lightning, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(divot_lightning)
    assert value is getattr(importlib.import_module(value.__module__), name)


def test_public_names_are_listed_once_and_in_order():
    assert divot_lightning.__all__ == sorted(set(divot_lightning.__all__))
    assert set(divot_lightning.__all__) == set(divot_lightning._MODULE_OF)


def test_another_name_is_refused_with_those_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'VideoTokeniser'; public names: Answer, .*VideoTo"):
        _ = divot_lightning.VideoTokeniser


def test_type_checkers_see_the_same_names():
    source = importlib.util.find_spec("divot_lightning").loader.get_source("divot_lightning")
    for module, names in divot_lightning._MODULES.items():
        assert f"from divot_lightning.{module} import {', '.join(names)}\n" in source
