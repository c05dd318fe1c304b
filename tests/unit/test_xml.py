"""FHIR XML. Expected values: FHIR R4 xml 2.6.1, json 2.6.2, XML 1.0."""

import time

import pytest

from fhir_server.model import json
from fhir_server.model.xml import from_xml, to_xml
from imaging.errors import AppError, Category

HEAD = b'<?xml version="1.0" encoding="UTF-8"?>'


def read(content: str, kind: str = "Patient"):
    return from_xml(f'<{kind} xmlns="http://hl7.org/fhir">{content}</{kind}>'.encode(), most_levels=64)


def written(resource) -> str:
    return to_xml(resource).removeprefix(HEAD).decode()


# ---- the forms of the standard


PAIRS = [
    # 2.6.1: values in attributes, elements in the order of the definition
    ('<active value="true"/><birthDate value="1920"/>', {"birthDate": "1920", "active": True}),
    # 2.6.2.1: repeated elements are lists
    ('<name><family value="A"/></name><name><family value="B"/></name>', {"name": [{"family": "A"}, {"family": "B"}]}),
    # 2.6.2.2: ids and extensions of primitives stand beside them
    (
        '<birthDate id="314159" value="1970-03-30"><extension url="http://e.test/text">'
        '<valueString value="Easter 1970"/></extension></birthDate>',
        {
            "birthDate": "1970-03-30",
            "_birthDate": {
                "id": "314159",
                "extension": [{"url": "http://e.test/text", "valueString": "Easter 1970"}],
            },
        },
    ),
    (
        '<name><given value="A"/><given id="b"/><given value="C" id="c"/></name>',
        {"name": [{"given": ["A", None, "C"], "_given": [None, {"id": "b"}, {"id": "c"}]}]},
    ),
    # 2.6.2.3: the id of an element is an attribute, that of a resource is none
    (
        '<id value="p"/><maritalStatus id="m"><text value="x"/></maritalStatus>',
        {"id": "p", "maritalStatus": {"id": "m", "text": "x"}},
    ),
    # 2.6.2.5: resources inside of resources
    (
        '<contained><Organization><id value="o"/></Organization></contained>',
        {"contained": [{"resourceType": "Organization", "id": "o"}]},
    ),
    # 2.6.2.6: narrative as it is
    (
        '<text><status value="generated"/>'
        "<div xmlns=\"http://www.w3.org/1999/xhtml\"><p title='a>b'>x<br /></p></div></text>",
        {
            "text": {
                "status": "generated",
                "div": "<div xmlns=\"http://www.w3.org/1999/xhtml\"><p title='a>b'>x<br /></p></div>",
            }
        },
    ),
]


@pytest.mark.parametrize(("content", "expected"), PAIRS)
def test_a_form_of_the_standard_is_read(content, expected):
    assert read(content) == {"resourceType": "Patient", **expected}


@pytest.mark.parametrize(("content", "resource"), PAIRS)
def test_a_form_of_the_standard_is_read_again_as_it_is_written(content, resource):
    text = written({"resourceType": "Patient", **resource})

    assert from_xml(text.encode(), most_levels=64) == read(content)


def test_elements_are_written_in_the_order_of_the_definition():
    resource = {"resourceType": "Patient", "birthDate": "1920", "active": True, "id": "x", "name": [{"family": "A"}]}

    assert written(resource) == (
        '<Patient xmlns="http://hl7.org/fhir"><id value="x"/><active value="true"/>'
        '<name><family value="A"/></name><birthDate value="1920"/></Patient>'
    )


def test_decimals_keep_their_digits():
    for digits in ("1.50", "100", "0.00001", "1e5", "-3.10E-2", "1" * 40 + ".5"):
        body = f'{{"resourceType":"Observation","valueQuantity":{{"value":{digits}}}}}'.encode()

        text = to_xml(json.loads(body))

        assert f'<value value="{digits}"/>'.encode() in text
        assert json.dumps(from_xml(text, most_levels=64)) == body


def test_white_space_of_values_survives_the_rules_of_attributes():
    resource = {"resourceType": "Basic", "code": {"text": " a\n\tb\r\n<&\"'> "}}

    assert from_xml(to_xml(resource), most_levels=64) == resource


def test_what_xml_cannot_hold_is_replaced():
    resource = {"resourceType": "Basic", "code": {"text": "a\x01b\ufffe"}}

    assert from_xml(to_xml(resource), most_levels=64)["code"]["text"] == "a\ufffdb\ufffd"


def test_a_narrative_that_would_break_the_document_is_written_as_text():
    resource = {"resourceType": "Basic", "text": {"status": "generated", "div": "<div>&nbsp;<br></div>"}}

    again = from_xml(to_xml(resource), most_levels=64)

    assert "&lt;br>" in again["text"]["div"]


def test_comments_declarations_and_schema_locations_are_passed_over():
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><!-- x --><?x y?>'
        '<f:Patient xmlns:f="http://hl7.org/fhir" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:schemaLocation="http://hl7.org/fhir fhir-all.xsd"> <!-- y --> <f:active value="true"/></f:Patient>'
    )

    assert from_xml(text.encode(), most_levels=64) == {"resourceType": "Patient", "active": True}


# ---- what is refused


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "<Patient/>",
        '<Patient xmlns="http://hl7.org/fhir">',
        '<Unicorn xmlns="http://hl7.org/fhir"/>',
        '<Element xmlns="http://hl7.org/fhir"/>',
        '<Patient xmlns="http://hl7.org/fhir/2"/>',
        '<!DOCTYPE Patient><Patient xmlns="http://hl7.org/fhir"/>',
        '<!DOCTYPE Patient [<!ENTITY x SYSTEM "file:///etc/passwd">]><Patient xmlns="http://hl7.org/fhir"/>',
        '<Patient xmlns="http://hl7.org/fhir"><active value="&x;"/></Patient>',
    ],
)
def test_what_is_no_document_of_fhir_is_invalid(text):
    with pytest.raises(AppError) as raised:
        from_xml(text.encode(), most_levels=64)

    assert raised.value.category is Category.INVALID


@pytest.mark.parametrize(
    "content",
    [
        '<shoeSize value="44"/>',
        '<_active value="true"/>',
        '<resourceType value="Patient"/>',
        '<active value="true" lang="de"/>',
        '<active value="true"/><active value="false"/>',
        "<active/>",
        "secret words",
        '<name url="x"/>',
        '<maritalStatus value="x"/>',
        "<contained><Patient/><Patient/></contained>",
        "<contained><Unicorn/></contained>",
        '<deceasedQuantity><value value="1"/></deceasedQuantity>',
        "<text><div>x</div></text>",
        '<div xmlns="http://www.w3.org/1999/xhtml">x</div>',
        '<x:active xmlns:x="http://x.test" value="true"/>',
        "\x01",
        "<contact>" * 100,
        "<extension url='x'>" * 100 + "</extension>" * 100,
    ],
)
def test_content_that_is_not_of_fhir_is_invalid_and_not_repeated(content):
    with pytest.raises(AppError) as raised:
        read(content)

    assert raised.value.category is Category.INVALID
    assert raised.value.where.startswith("line ")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "content", "name", "value"),
    [
        ("Patient", '<active value="TRUE"/>', "active", "TRUE"),
        ("Patient", '<multipleBirthInteger value="007"/>', "multipleBirthInteger", "007"),
        ("Patient", '<multipleBirthInteger value="1.0"/>', "multipleBirthInteger", "1.0"),
    ],
)
def test_a_value_of_the_wrong_form_is_left_to_validation(kind, content, name, value):
    assert read(content, kind)[name] == value


def test_entities_do_not_expand():
    entities = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(12))
    text = (
        f'<!DOCTYPE x [<!ENTITY a0 "ha">{entities}]><Patient xmlns="http://hl7.org/fhir"><id value="&a12;"/></Patient>'
    )
    begun = time.monotonic()

    with pytest.raises(AppError):
        from_xml(text.encode(), most_levels=64)

    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("digits", ["1e400", "1e999999999", "-1e-99999999999999999999", "9" * 400 + ".5"])
def test_a_number_that_json_could_not_hold_is_left_to_validation(digits):
    content = f'<valueQuantity><value value="{digits}"/></valueQuantity>'

    assert read(content, "Observation")["valueQuantity"]["value"] == digits
