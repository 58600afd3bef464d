"""Services, routes and authenticators of plugins: what they write and use is imported from here, for good."""

from router.access.access import Authenticator, Credentials, Named
from router.access.clients import Role
from router.server.call import Call
from router.server.http import Reply, Route
from router.server.policy import ADMIN, GENERATE, INFER, OBSERVE, Policy, ServiceSpec

__all__ = [
    "ADMIN",
    "GENERATE",
    "INFER",
    "OBSERVE",
    "Authenticator",
    "Call",
    "Credentials",
    "Named",
    "Policy",
    "Reply",
    "Role",
    "Route",
    "ServiceSpec",
]
