"""One chart a file: the rows it draws, how they are encoded, and its description in words.

Equal cards give equal bytes. Every chart is drawn on light and on dark paper, so no chart sets a text color: pages do,
through `theme.paper`.
Series differ by shape as well as by color, and every color keeps 3:1 contrast on both papers (`theme.PALETTE`).
Names are made visible and cut, numbers for tooltips are formatted. A logarithmic axis holds neither null nor zero:
such rows are left out.
"""
