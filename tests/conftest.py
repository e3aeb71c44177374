"""What all tests share."""

from hypothesis import HealthCheck, settings

# A busy machine must not fail a test.
settings.register_profile("epur", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("epur")
