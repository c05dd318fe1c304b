"""What the authorization server says of itself: addresses, capabilities, scopes. Pure.

Source: SMART App Launch 2.2 (conformance), RFC 8414, OpenID Connect Discovery 1.0; SMART Imaging Access.
"""

from typing import Any

from fhir_server.access.apps import METHODS, PUBLIC
from fhir_server.access.assertions import ALGORITHMS

SMART_IMAGING = "http://fhir.org/argonaut/smart-imaging/capabilities"
CAPABILITIES = (
    "launch-ehr", "launch-standalone", "authorize-post",
    "client-public", "client-confidential-symmetric", "client-confidential-asymmetric",
    "sso-openid-connect",
    "context-banner", "context-ehr-patient", "context-ehr-encounter", "context-standalone-patient",
    "context-standalone-encounter",
    "permission-offline", "permission-online", "permission-patient", "permission-user",
    "permission-v1", "permission-v2",
    "smart-imaging-access", f"{SMART_IMAGING}/app-launch", f"{SMART_IMAGING}/backend-services",
)  # fmt: skip
SCOPES = (
    "openid", "fhirUser", "profile", "launch", "launch/patient", "launch/encounter", "launch/imagingstudy",
    "offline_access", "online_access",
    "patient/*.rs", "patient/ImagingStudy.rs", "patient/*.cruds", "user/*.rs", "user/ImagingStudy.rs", "user/*.cruds",
    "system/*.rs", "system/ImagingStudy.rs", "system/*.cruds",
)  # fmt: skip
OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
_SECURITY_SERVICE = "http://terminology.hl7.org/CodeSystem/restful-security-service"


def addresses(issuer: str) -> dict[str, str]:
    """Return the addresses of the authorization server by their names in RFC 8414."""
    return {
        "authorization_endpoint": f"{issuer}/auth/authorize",
        "token_endpoint": f"{issuer}/auth/token",
        "introspection_endpoint": f"{issuer}/auth/introspect",
        "revocation_endpoint": f"{issuer}/auth/revoke",
        "management_endpoint": f"{issuer}/auth/",
        "jwks_uri": f"{issuer}/auth/jwks",
    }


def configuration(issuer: str, *, is_registration_open: bool) -> dict[str, Any]:
    """Return `.well-known/smart-configuration`. Source: SMART 2.2, conformance; RFC 8414; OpenID Connect Discovery."""
    found = addresses(issuer)
    return {
        "issuer": issuer,
        **found,
        **({"registration_endpoint": f"{issuer}/auth/register"} if is_registration_open else {}),
        "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": list(METHODS),
        "token_endpoint_auth_signing_alg_values_supported": list(ALGORITHMS),
        "introspection_endpoint_auth_methods_supported": [each for each in METHODS if each != PUBLIC],
        "revocation_endpoint_auth_methods_supported": list(METHODS),
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "at_hash", "fhirUser", "name"],
        "scopes_supported": list(SCOPES),
        "authorization_response_iss_parameter_supported": True,
        "capabilities": list(CAPABILITIES),
    }


def security(issuer: str) -> dict[str, Any]:
    """Return `CapabilityStatement.rest.security` of a server with this authorization server."""
    found = addresses(issuer)
    names = {"authorize": "authorization", "token": "token", "introspect": "introspection", "revoke": "revocation",
             "manage": "management"}  # fmt: skip
    uris = [{"url": name, "valueUri": found[f"{full}_endpoint"]} for name, full in names.items()]
    return {
        "extension": [{"url": OAUTH_URIS, "extension": uris}],
        "service": [{"coding": [{"system": _SECURITY_SERVICE, "code": "SMART-on-FHIR"}]}],
    }
