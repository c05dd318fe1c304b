"""Whose element is it: what of an ImagingStudy belongs to the images, and what to whoever writes FHIR.

Pure. `merge` lays a new projection over what is stored, so that what a client added survives; `changed_by_client` names
the elements of the images that a client tried to change. `ownership` has the repository keep to it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.projection import DICOM_UID, ENDPOINT, EQUIPMENT, FLAGS, IMAGING_CONDITIONS, Resource

Ours = Callable[[Mapping[str, Any]], bool]  # says of an entry of a list that both sides write whether it is the images'

# Elements of ImagingStudy that come from the images as a whole.
OWNED = (
    "status", "modality", "subject", "started", "referrer", "numberOfSeries", "numberOfInstances", "description",
)  # fmt: skip
# Of a series; a client may add to the rest (extension, specimen, performer, endpoint).
OWNED_OF_SERIES = (
    "uid", "number", "modality", "description", "numberOfInstances", "bodySite", "laterality", "started", "instance",
)  # fmt: skip


def shows_images(imaging_study: Mapping[str, Any]) -> bool:
    """Say whether an ImagingStudy refers to this server's own Endpoint, as every projected one does."""
    return any(_is_our_endpoint(entry) for entry in imaging_study.get("endpoint", []))


def merge(existing: Resource | None, projected: Resource) -> Resource:
    """Return what to store: `projected` over `existing`, keeping what a client added.

    What the images tell is replaced, and series without images go; entries that a client added to shared lists
    (identifier, basedOn, endpoint, a series' performer and extension) stay after ours; all else stays as it is.
    """
    if existing is None:
        return projected
    merged = existing | projected
    for name, is_ours in _SHARED.items():
        _join(merged, name, projected, existing, is_ours)
    known = {entry.get("uid"): entry for entry in existing.get("series", [])}
    merged["series"] = [_merge_series(known.get(entry["uid"]), entry) for entry in projected["series"]]
    merged["meta"] = _merge_meta(existing.get("meta", {}), projected["meta"])
    return merged


def changed_by_client(stored: Resource, proposed: Resource) -> list[str]:
    """Return the paths of elements of the images in which `proposed` differs from `stored`, in document order."""
    paths = [f"ImagingStudy.{name}" for name in OWNED if stored.get(name) != proposed.get(name)]
    for name, is_ours in _SHARED.items():
        if not _keeps(stored.get(name, []), proposed.get(name, []), is_ours):
            paths.append(f"ImagingStudy.{name}")
    stored_series, proposed_series = stored.get("series", []), proposed.get("series", [])
    if [entry.get("uid") for entry in stored_series] != [entry.get("uid") for entry in proposed_series]:
        return [*paths, "ImagingStudy.series"]
    for number, (old, new) in enumerate(zip(stored_series, proposed_series, strict=True)):
        paths += [f"ImagingStudy.series[{number}].{name}" for name in _changed_of_series(old, new)]
    return paths


def _join(
    merged: dict[str, Any], name: str, projected: Mapping[str, Any], existing: Mapping[str, Any], is_ours: Ours
) -> None:
    ours = projected.get(name, [])
    added = [entry for entry in existing.get(name, []) if not is_ours(entry) and entry not in ours]
    if ours or added:
        merged[name] = [*ours, *added]
    else:
        merged.pop(name, None)


def _merge_series(existing: Mapping[str, Any] | None, projected: dict[str, Any]) -> dict[str, Any]:
    if existing is None:
        return projected
    merged = {**existing, **projected}
    for name, is_ours in _SHARED_OF_SERIES.items():
        _join(merged, name, projected, existing, is_ours)
    if (instances := existing.get("instance")) != projected["instance"]:
        merged["instance"] = _merge_instances(instances or [], projected["instance"])
    return merged


def _merge_instances(existing: list[dict[str, Any]], projected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Instances as projected, each with the extensions that a client gave it before there were images."""
    added = {entry.get("uid"): entry["extension"] for entry in existing if "extension" in entry}
    if not added:
        return projected
    return [{**each, "extension": added[each["uid"]]} if each["uid"] in added else each for each in projected]


def _merge_meta(existing: Mapping[str, Any], projected: Mapping[str, Any]) -> dict[str, Any]:
    # Version and time are the repository's; profiles, tags and security labels of a client stay.
    kept = {name: value for name, value in existing.items() if name not in ("versionId", "lastUpdated")}
    profiles = [
        *projected["profile"],
        *(each for each in existing.get("profile", []) if each not in projected["profile"]),
    ]
    return with_flags({**kept, "profile": profiles}, projected)


def with_flags(meta: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return `meta` with the flags of `ours`: no client sets or takes away what images did not pass."""
    tags = [each for each in ours.get("tag", []) if _is_flag(each)]
    tags += [each for each in meta.get("tag", []) if not _is_flag(each)]
    rest = {name: value for name, value in meta.items() if name != "tag"}
    return {**rest, "tag": tags} if tags else rest


def _is_flag(tag: Mapping[str, Any]) -> bool:
    return tag.get("system") == FLAGS


def _keeps(stored: list[Any], proposed: list[Any], is_ours: Ours) -> bool:
    return [entry for entry in stored if is_ours(entry)] == [entry for entry in proposed if is_ours(entry)]


def _changed_of_series(stored: Mapping[str, Any], proposed: Mapping[str, Any]) -> list[str]:
    names = [name for name in OWNED_OF_SERIES if name != "instance" and stored.get(name) != proposed.get(name)]
    if _bare(stored.get("instance", [])) != _bare(proposed.get("instance", [])):
        names.append("instance")
    shared = _SHARED_OF_SERIES.items()
    return names + [
        name for name, is_ours in shared if not _keeps(stored.get(name, []), proposed.get(name, []), is_ours)
    ]


def _bare(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in each.items() if name != "extension"} for each in instances]


# --- who owns which entry of a list that both sides write


def _is_our_identifier(entry: Mapping[str, Any]) -> bool:
    codes = {coding.get("code") for coding in entry.get("type", {}).get("coding", [])}
    return entry.get("system") == DICOM_UID or ("ACSN" in codes and entry.get("use") == "official")


def _is_our_endpoint(entry: Mapping[str, Any]) -> bool:
    return entry.get("reference") == ENDPOINT


def _is_our_performer(entry: Mapping[str, Any]) -> bool:
    actor = entry.get("actor", {})
    reference = str(actor.get("reference", ""))
    return reference.startswith(f"Device/{EQUIPMENT}") or (not reference and actor.get("type") == "Practitioner")


def _is_our_extension(entry: Mapping[str, Any]) -> bool:
    return entry.get("url") == IMAGING_CONDITIONS


def _is_ours_never(_: Mapping[str, Any]) -> bool:
    """An order found by accession number is a conclusion, not a fact of the images: a client may say otherwise."""
    return False


_SHARED = {"identifier": _is_our_identifier, "basedOn": _is_ours_never, "endpoint": _is_our_endpoint}
_SHARED_OF_SERIES = {"endpoint": _is_our_endpoint, "performer": _is_our_performer, "extension": _is_our_extension}
