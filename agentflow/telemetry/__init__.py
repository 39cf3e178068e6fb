"""What operators watch: numbers for Prometheus, spans for OpenTelemetry."""
