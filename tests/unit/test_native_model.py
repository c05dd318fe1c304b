"""The Native DICOM Model. Expected XML is the form of PS3.19 A.1; the reader is the standard library's."""

from xml.etree import ElementTree

from imaging.dicomweb.native_model import NAMESPACE, native_model


def parsed(document):
    return ElementTree.fromstring(native_model(document))


def found(document, path):
    return [element.text for element in parsed(document).findall(path, {"": NAMESPACE})]


def test_values_are_numbered_in_order():
    document = {"00080060": {"vr": "CS", "Value": ["CT"]}, "00280030": {"vr": "DS", "Value": [0.5, 0.25]}}
    first, second = parsed(document)

    assert first.attrib == {"tag": "00080060", "vr": "CS", "keyword": "Modality"}
    assert [(value.attrib["number"], value.text) for value in second] == [("1", "0.5"), ("2", "0.25")]


def test_an_empty_value_among_others_leaves_its_number_free():
    (attribute,) = parsed({"00080008": {"vr": "CS", "Value": ["A", None, "C"]}})

    assert [value.attrib["number"] for value in attribute] == ["1", "3"]


def test_person_names_are_taken_apart():
    name = {"Alphabetic": "Yamada^Tarou^^Dr", "Ideographic": "山田^太郎"}
    document = {"00100010": {"vr": "PN", "Value": [name]}}

    assert found(document, ".//Alphabetic/FamilyName") == ["Yamada"]
    assert found(document, ".//Alphabetic/NamePrefix") == ["Dr"]
    assert found(document, ".//Alphabetic/MiddleName") == []
    assert found(document, ".//Ideographic/GivenName") == ["太郎"]


def test_items_of_sequences_are_nested():
    item = {"00081150": {"vr": "UI", "Value": ["1.2"]}}
    document = {"00081199": {"vr": "SQ", "Value": [item, {}, item]}}

    assert found(document, "./DicomAttribute/Item[@number='3']/DicomAttribute/Value") == ["1.2"]


def test_binary_values_are_inline_or_referred_to():
    document = {
        "7FE00010": {"vr": "OW", "BulkDataURI": "https://a/b?c=d&e"},
        "00420011": {"vr": "OB", "InlineBinary": "AAAA"},
    }

    assert found(document, ".//InlineBinary") == ["AAAA"]
    assert parsed(document).find(f".//{{{NAMESPACE}}}BulkData").attrib["uri"] == "https://a/b?c=d&e"


def test_private_attributes_name_their_creator():
    document = {"00091001": {"vr": "LO", "Value": ["x"]}, "00090010": {"vr": "LO", "Value": ['ACME "1"']}}

    reservation, attribute = parsed(document)

    assert attribute.attrib == {"tag": "00091001", "vr": "LO", "privateCreator": 'ACME "1"'}
    assert "privateCreator" not in reservation.attrib


def test_markup_and_control_characters_do_no_harm():
    document = {"00104000": {"vr": "LT", "Value": ["<a & b>\x00\x1b\ud800 \r\n]]>"]}}

    assert found(document, ".//Value") == ["<a & b>\ufffd\ufffd\ufffd \r\n]]>"]


def test_an_empty_attribute_is_there():
    assert [each.attrib["vr"] for each in parsed({"00100020": {"vr": "LO"}})] == ["LO"]
