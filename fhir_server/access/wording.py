"""What scopes mean, in the words of people who are asked to agree to them. Pure."""

from dataclasses import dataclass

from fhir_server.access.scopes import ANY, Context, ResourceScope, Scopes

KINDS = {
    # resource type          what people call it
    "ImagingStudy": "images and what is known of them",
    "DiagnosticReport": "reports",
    "Observation": "measurements and findings",
    "Patient": "personal details: name, birth date, address",
    "Practitioner": "details of doctors and nurses",
    "Organization": "names of hospitals and practices",
    "Encounter": "visits",
    "Condition": "diagnoses",
    "Procedure": "procedures",
    "ServiceRequest": "requests for examinations",
    "DocumentReference": "documents",
    "Task": "orders of image processing and prints",
    "Device": "devices and programs",
    "Endpoint": "addresses at which images can be fetched",
    "AuditEvent": "the record of who accessed what",
    ANY: "everything that is kept here: images, reports, personal details and all else",
}
DEEDS = {
    # permissions  what an app does with them
    "c": "add",
    "r": "see",
    "s": "search",
    "u": "change",
    "d": "delete",
}
WHOSE = {
    Context.PATIENT: "of this one patient",
    Context.USER: "of every patient that you may see",
    Context.SYSTEM: "of every patient that your organisation may see",
}
OTHERS = {
    "openid": "Learn that it is you who signed in",
    "fhirUser": "Learn which person you are in the records",
    "profile": "Learn your name",
    "offline_access": "Keep its access for a long time, also while you are not here, until you take it back",
    "online_access": "Keep its access for as long as you are signed in",
    "launch": "Know what you were looking at when you started it",
    "launch/patient": "Know which patient this is about",
    "launch/encounter": "Know which visit this is about",
    "launch/imagingstudy": "Know which images this is about",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One thing to agree to.

    scope       as it is written, for the form
    words       what it means
    is_writing  whether the app may change what is kept here
    """

    scope: str
    words: str
    is_writing: bool = False


def explained(scopes: Scopes) -> list[Line]:
    """Return what an app asks for, in plain words: what it may see and do first, the rest after."""
    lines = [Line(str(each), _words(each), bool(set(each.permissions) & set("cud"))) for each in scopes.resources]
    return lines + [Line(each, OTHERS.get(each.partition("?")[0], each)) for each in scopes.others]


def _words(scope: ResourceScope) -> str:
    deeds = [DEEDS[each] for each in "rscud" if each in scope.permissions]
    listed = deeds[0] if len(deeds) == 1 else f"{', '.join(deeds[:-1])} and {deeds[-1]}"
    what = KINDS.get(scope.type, f"records of the kind {scope.type}")
    only = " and ".join(f"{name} is {value.rpartition('|')[2] or value}" for name, value in scope.criteria)
    limit = f", only where {only}" if only else ""
    return f"{listed.capitalize()} {what} {WHOSE[scope.context]}{limit}"
