"""One HTML file that shows what ran: `collecting` reads the ledger, `columns` makes JSON of it, `page` the file.

Everything is inlined, so the file works offline, from a mail's attachment; what a job wrote is data in it, never code.
"""

from cloudrun.report.collecting import Data, collect
from cloudrun.report.page import render

__all__ = ["Data", "collect", "render"]
