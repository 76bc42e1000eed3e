from __future__ import annotations

from promptadapt_core import page


def test_numbers_are_short() -> None:
    assert [page.number(value) for value in (3, 1234567, 0.12345, 456.7, None)] == [
        "3", "1,234,567", "0.123", "457", "-"
    ]  # fmt: skip
    assert page.percent(0.905) == "90.5%"
    assert page.percent(float("nan")) == "-"


def test_text_in_the_page_is_escaped() -> None:
    assert "<script>" not in page.table(("a", "b"), [("<script>", True), (1.0, False)])
    assert page.paragraph("a < b") == "<p>a &lt; b</p>"


def test_a_page_has_its_own_style_beside_that_of_all() -> None:
    text = page.page("a < b", [page.heading("more")], "mark { color: red; }")
    assert text.count("<style>") == 1
    assert text.index(page.STYLE) < text.index("mark { color: red; }") < text.index("</head>")
    assert "<title>a &lt; b</title>" in text
    assert text.endswith("<h2>more</h2>\n</body>\n</html>\n")
