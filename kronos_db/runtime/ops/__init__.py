"""What operators and machines ask of a serving process: metrics, health, readiness."""
