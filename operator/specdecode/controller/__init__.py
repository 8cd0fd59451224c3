"""The operator process: kopf wiring, settings, telemetry."""
