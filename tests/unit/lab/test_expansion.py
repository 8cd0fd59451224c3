import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.lab.expansion import expand

VALUES = {"VAR_A": "A", "VAR_B": "B", "VAR_C": "C", "VAR_REF": "$(VAR_A)", "VAR_EMPTY": ""}


# The cases are those of Kubernetes' own test of this function (third_party/forked/golang/expansion).
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(VAR_A)", "A"),
        ("___$(VAR_B)___", "___B___"),
        ("___$(VAR_C)", "___C"),
        ("$(VAR_A)-$(VAR_A)", "A-A"),
        ("$(VAR_REF)_1", "$(VAR_A)_1"),
        ("$(VAR_EMPTY)", ""),
        ("$(VAR_DNE)", "$(VAR_DNE)"),
        ("$$(VAR_A)", "$(VAR_A)"),
        ("$$$(VAR_A)", "$A"),
        ("$$$$(VAR_A)", "$$(VAR_A)"),
        ("foo$$(VAR_A)_$$(VAR_B)", "foo$(VAR_A)_$(VAR_B)"),
        ("f000-$VAR_A", "f000-$VAR_A"),
        ("foo$bar", "foo$bar"),
        ("foo-$()", "foo-$()"),
        ("$(VAR_A", "$(VAR_A"),
        ("$(VAR_A)$", "A$"),
        ("$$$$$$", "$$$"),
        ("$", "$"),
        ("", ""),
    ],
)
def test_references_are_expanded_as_a_kubelet_expands_them(text: str, expected: str) -> None:
    assert expand(text, VALUES) == expected


@given(st.text(alphabet="$()AB x"))
def test_a_text_whose_dollars_are_doubled_comes_out_as_it_was(text: str) -> None:
    assert expand(text.replace("$", "$$"), {"A": "1", "B": "2"}) == text


@given(st.text().filter(lambda text: "$" not in text))
def test_a_text_without_dollars_stays_as_it_is(text: str) -> None:
    assert expand(text, VALUES) == text
