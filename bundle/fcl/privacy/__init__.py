"""What a site's patients give away, limited and measured."""

from fcl.privacy.accounting import PrivacyLedger, epsilon_of
from fcl.privacy.noise import NoiseSource, os_normal
from fcl.privacy.publisher import FeaturePolicy, FeaturePublisher

__all__ = ["FeaturePolicy", "FeaturePublisher", "NoiseSource", "PrivacyLedger", "epsilon_of", "os_normal"]
