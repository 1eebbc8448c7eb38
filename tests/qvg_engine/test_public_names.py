import inspect

import qvg_engine


def test_all_names_what_is_public() -> None:
    public = {
        name
        for name in dir(qvg_engine)
        if not name.startswith("_") and not inspect.ismodule(getattr(qvg_engine, name))
    }
    assert sorted({*public, "__version__"}) == sorted(qvg_engine.__all__)


def test_public_names_say_what_they_are() -> None:
    for name in set(qvg_engine.__all__) - {"__version__"}:
        assert inspect.getdoc(getattr(qvg_engine, name)), f"{name} has no docstring"
