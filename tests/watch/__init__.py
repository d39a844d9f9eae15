"""Prometheus and Grafana as they are shipped: rules, alerts, dashboards."""
