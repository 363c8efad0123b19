"""What may leave a site: the policy, the filter that holds to it, and the record of what left."""

from flare_app.egress.filter import EgressFilter
from flare_app.egress.manifest import Manifest, read_manifest
from flare_app.egress.plain import EgressError
from flare_app.egress.policy import EgressPolicy

__all__ = ["EgressError", "EgressFilter", "EgressPolicy", "Manifest", "read_manifest"]
