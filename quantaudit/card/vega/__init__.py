"""Vega, which draws the charts: as images here, and as scripts that draw on the page. Imports vl_convert when used."""
