"""Narratives. Expected values: FHIR R4 narrative, txt-1 and txt-2; what browsers are known to run."""

import pytest

from fhir_server.model.narrative import problem


def div(content: str) -> str:
    return f'<div xmlns="http://www.w3.org/1999/xhtml">{content}</div>'


@pytest.mark.parametrize(
    "content",
    [
        "a man",
        '<p class="x" style="color: red">a <b>b</b><br/></p>',
        '<table border="1"><thead><tr><th colspan="2">x</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>',
        '<a href="Patient/1">x</a><a href="#a">y</a><a name="a">z</a>',
        '<a href="https://x.test/?a=1&amp;b=2">x</a><a href="mailto:a@x.test">y</a>',
        '<img src="#picture" alt=""/>',
        '<img src="data:image/png;base64,AAAA"/>',
        '<ul><li xml:lang="de">ä &#160; &lt;</li></ul>',
        '<q cite="http://x.test">x</q>',
    ],
)
def test_what_formats_text_is_welcome(content):
    assert problem(div(content)) == ""


@pytest.mark.parametrize(
    "content",
    [
        "<script>alert(1)</script>",
        '<p onclick="alert(1)">x</p>',
        '<img src="x" onerror="alert(1)"/>',
        "<style>p { color: red }</style>",
        '<link href="http://x.test/a.css"/>x',
        '<iframe src="http://x.test"/>x',
        "<object/>x",
        "<embed/>x",
        "<form><input/></form>x",
        '<base href="http://x.test"/>x',
        "<font>x</font>",
        "<head/><body>x</body>",
        '<a href="javascript:alert(1)">x</a>',
        '<a href=" JaVaScRiPt:alert(1)">x</a>',
        '<a href="java&#10;script:alert(1)">x</a>',
        '<a href="vbscript:x">x</a>',
        '<a href="data:text/html,x">x</a>',
        '<img src="data:image/svg+xml,x"/>',
        '<a href="data:image/png;base64,AAAA">x</a>',
        '<p style="background: url(http://x.test)">x</p>',
        '<p style="width: expression(alert(1))">x</p>',
        '<p style="-moz-binding: x">x</p>',
        '<p style="b\\61 ckground: x">x</p>',
        '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>x',
        '<p xmlns="">x</p>',
        '<a xmlns:xlink="http://www.w3.org/1999/xlink" xlink:href="javascript:alert(1)">x</a>',
        "&nbsp;",
        "<p>x",
        "",
        "  \n ",
        "<p></p>",
        "<b>" * 200 + "x" + "</b>" * 200,
    ],
)
def test_what_does_more_is_refused(content):
    assert problem(div(content)) != ""


@pytest.mark.parametrize(
    "text",
    [
        "a man",
        "<div>a man</div>",
        '<p xmlns="http://www.w3.org/1999/xhtml">x</p>',
        '<!DOCTYPE div [<!ENTITY x "y">]><div xmlns="http://www.w3.org/1999/xhtml">&x;</div>',
        f"{div('x')}{div('y')}",
        "\ud800",
    ],
)
def test_what_is_no_div_of_xhtml_is_refused(text):
    assert problem(text) != ""


def test_the_reason_repeats_no_content():
    assert "Chalmers" not in problem(div("<p>Chalmers</p><script>Chalmers</script>"))
