"""Help texts come from the source, class by class, and wherever there is no source there is no help and no error."""

from pydantic import Field

from ray_pcasgd.base.docstrings import docstring_of
from ray_pcasgd.base.settings import Settings


class Plain(Settings):
    """Has one of each."""

    first: int = 0
    """The first,
    in two lines."""
    second: int = 0
    third: int = Field(0, description="The third.")
    """Not this."""

    class Inner(Settings):
        """Within another."""

        first: int = 0
        """The inner first."""


class Derived(Plain):
    """Defines one anew, and one more."""

    second: int = 1
    """The second."""


def test_each_field_has_the_text_below_it() -> None:
    assert [Plain.help_of(name) for name in ("first", "second", "third")] == [
        "The first,\nin two lines.",
        "",
        "The third.",
    ]
    assert Plain.Inner.help_of("first") == "The inner first."


def test_a_derived_class_has_its_bases_texts_where_it_defines_none() -> None:
    assert [Derived.help_of(name) for name in ("first", "second", "third")] == [
        "The first,\nin two lines.",
        "The second.",
        "The third.",
    ]


def test_classes_within_functions_are_told_apart() -> None:
    def make() -> type[Settings]:
        class Plain(Settings):
            """Has the name of another."""

            first: int = 0
            """Of a function's."""

        return Plain

    assert make().help_of("first") == "Of a function's."
    properties = make().model_json_schema()["properties"]
    assert properties["first"]["description"] == "Of a function's."


def test_what_has_no_source_has_no_text() -> None:
    names: dict[str, object] = {"Settings": Settings, "__name__": "typed"}
    exec("class Typed(Settings):\n    first: int = 0\n    'Text.'\n", names)
    typed = names["Typed"]
    assert isinstance(typed, type)
    assert docstring_of(typed, "first") == ""
    assert docstring_of(int, "real") == ""
