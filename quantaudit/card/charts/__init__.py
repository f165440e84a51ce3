"""Card → Vega-Lite charts, as pure functions: equal cards give equal bytes."""
